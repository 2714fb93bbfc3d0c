import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from distill.models.calibration import BOUNDS, FEWEST, calibrate, expected_calibration_error, fit_temperature


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


# Of each: texts, how much too large the logits are, and whether a temperature is applied; sampled() is calibrated.
JUDGED = {
    "many texts, far too sure": (2_000, 3.0, True),
    "many texts, not sure enough": (2_000, 0.5, True),
    "some texts, far too sure": (200, 3.0, True),
    "some texts, right as they are": (200, 1.0, False),
    "few texts, right as they are": (FEWEST, 1.0, False),
    "too few texts, far too sure": (FEWEST - 1, 3.0, False),
    "too few texts, right as they are": (16, 1.0, False),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_temperature_is_applied_if_it_helps_texts_that_it_was_not_fitted_on(name):
    examples, scale, applied = JUDGED[name]
    logits, gold = sampled(examples, seed=1)
    logits *= scale
    found = calibrate(logits, gold)
    assert found.fitted == fit_temperature(logits, gold) != 1.0
    if applied:
        assert found.refused is None and found.temperature == found.fitted == pytest.approx(scale, rel=0.2)
        assert found.ece < found.ece_before and found.log_loss < found.log_loss_before
    else:
        assert found.temperature == 1.0
        few = f"{examples} validation texts are too few to judge it (at least 50)"
        assert found.refused == few if examples < FEWEST else found.refused.startswith("it raises ")


def test_the_refusal_names_what_got_worse_with_its_figures():
    """One sure mistake in each fifth or so: what four fifths learn of it the last one does not bear out."""
    logits, gold = sampled(FEWEST, seed=1)
    found = calibrate(logits, gold)
    for name, before, after in (
        ("calibration error", found.ece_before, found.ece), ("log loss", found.log_loss_before, found.log_loss),
    ):  # fmt: skip
        assert (f"{name} from {before:.4f} to {after:.4f}" in found.refused) == (after > before)


def test_judging_is_repeatable_and_blind_to_the_order_of_classes():
    logits, gold = sampled(300)
    found = calibrate(logits * 3, gold)
    assert found == calibrate(logits * 3, gold)
    turned = calibrate(logits[:, ::-1] * 3, 2 - gold)
    assert turned.temperature == pytest.approx(found.temperature) and turned.ece == pytest.approx(found.ece)


def test_on_new_texts_what_is_applied_spoils_little():
    """Of forty small validation sets of a calibrated model: fitted blindly, most spoil its probabilities."""
    blind = judged = 0
    for seed in range(40):
        logits, gold = sampled(2_100, classes=2, seed=seed)
        found = calibrate(logits[:100], gold[:100])
        raw, fitted, kept = (
            expected_calibration_error(softmax(logits[100:] / by, axis=1), gold[100:])
            for by in (1.0, found.fitted, found.temperature)
        )
        blind, judged = blind + (fitted > raw + 0.005), judged + (kept > raw + 0.005)
    assert blind >= 25 and judged <= 8  # 30 and 6, as docs/losses.md says
