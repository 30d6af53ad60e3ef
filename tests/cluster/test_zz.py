from tests.cluster.test_tuning_crashes import *
del test_the_crash_matrix
del test_a_new_driver_predicts_with_what_a_killed_one_tuned
def test_c(worlds):
    print(cluster_rows(worlds))
