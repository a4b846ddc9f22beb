import pytest

from dualview.errors import InputError
from dualview.on_ray.cluster import map_in_order


@pytest.mark.parametrize("num_items", [0, 23])
def test_results_come_in_the_order_of_the_items(cluster, num_items):
    results = map_in_order(lambda number: number / 2, range(num_items))
    assert list(results) == [number / 2 for number in range(num_items)]


def test_a_users_mistake_stays_one_sentence(cluster):
    def refuse(number):
        raise InputError(f"{number}: expected something else")

    with pytest.raises(InputError) as caught:
        list(map_in_order(refuse, [4]))
    assert str(caught.value) == "4: expected something else"
