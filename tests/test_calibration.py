import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from distill.calibration import BOUNDS, fit_temperature
from distill.metrics import expected_calibration_error


def sampled(examples=4000, classes=3, seed=0):
    """Logits, and labels drawn from their own softmax: calibrated as they are."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(examples, classes)) * 2
    return logits, np.array([rng.choice(classes, p=row) for row in softmax(logits, axis=1)])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_probabilities_is_found_again(temperature):
    logits, gold = sampled()
    assert fit_temperature(logits * temperature, gold) == pytest.approx(temperature, rel=0.08)


def test_logits_three_times_as_large_need_a_temperature_three_times_as_high():
    logits, gold = sampled(500)
    assert fit_temperature(logits * 3, gold) == pytest.approx(3 * fit_temperature(logits, gold), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_no_other_temperature_has_a_lower_log_loss(seed, scale):
    logits, gold = sampled(200, classes=2 + seed, seed=seed)
    logits = (logits * scale).astype(np.float32)
    fitted = fit_temperature(logits, gold)

    def loss(temperature):
        return log_loss(gold, softmax(logits.astype(float) / temperature, axis=1), labels=range(logits.shape[1]))

    assert loss(fitted) <= min(loss(other) for other in (1.0, *np.geomspace(*BOUNDS, 60))) + 1e-8


def test_overconfidence_is_cured_on_texts_that_were_not_fitted():
    logits, gold = sampled()
    logits *= 4
    temperature = fit_temperature(logits[:2000], gold[:2000])
    raw, calibrated = (softmax(logits[2000:] / divisor, axis=1) for divisor in (1, temperature))
    assert expected_calibration_error(raw, gold[2000:]) > 0.1
    assert expected_calibration_error(calibrated, gold[2000:]) < 0.05


def test_answers_stay_what_they_were():
    logits, gold = sampled()
    logits = (logits * 7).astype(np.float32)
    np.testing.assert_array_equal((logits / fit_temperature(logits, gold)).argmax(axis=1), logits.argmax(axis=1))


def test_a_model_that_is_always_right_keeps_its_confidence():
    logits, _ = sampled(50)
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0


def test_a_model_that_is_always_wrong_is_told_to_be_unsure():
    logits, _ = sampled(50)
    assert fit_temperature(logits, logits.argmin(axis=1)) == pytest.approx(BOUNDS[1], rel=1e-3)
