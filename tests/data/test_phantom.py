import numpy as np

from medduet.data.phantom import phantom_images


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    one, same, other = (phantom_images(32, 20, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert np.array_equal(one.train.images, same.train.images)
    assert not np.array_equal(one.train.images, other.train.images)
    assert not np.array_equal(one.train.images[:2], one.val.images[:2])
