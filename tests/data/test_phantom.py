import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medduet.data.phantom import phantom_images


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    one, same, other = (phantom_images(32, 20, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert np.array_equal(one.train.images, same.train.images)
    assert not np.array_equal(one.train.images, other.train.images)
    assert not np.array_equal(one.train.images[:2], one.val.images[:2])


def test_a_linear_model_on_pixels_or_brightness_fails() -> None:
    images = phantom_images(32, (320, 8, 400))
    pixels = [split.images.reshape(len(split), -1) / 255 for split in (images.train, images.test)]
    moments = [np.stack([p.mean(1), p.std(1)], 1) for p in pixels]
    for (train, test), limit in ((pixels, 0.36), (moments, 0.40)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        model.fit(train, images.train.labels)
        assert model.score(test, images.test.labels) < limit
