"""What is watched among all that is logged."""

from lit_unlearn.display.numbers import Numbers


def test_watched_numbers_are_the_losses_log_probs_squeeze_indices_and_last_evaluation():
    numbers = Numbers()
    numbers.take({"train/forget_loss": 2.0, "train/retain_loss": 0.25, "train/forget_logp": -3.5, "epoch": 1}, 7)
    numbers.take({"train/loss": 2.25, "train/tokens_per_second": 1e5, "squeeze/index": 0.5, "squeeze/high": -1}, 8)
    numbers.take({"squeeze/retain_index": -0.25, "squeeze/retain_high": -1}, 8)
    numbers.take({"eval/agg": 0.5, "eval/mem": 0.25, "eval/utility": 0.75, "eval_forget/probability": 0.1}, 8)
    numbers.take({"train/forget_loss": 1e7}, 9)
    assert numbers.groups() == [
        ("loss", [("forget", "1.00e+07"), ("retain", "0.250")]),
        ("log-prob", [("forget", "-3.500")]),
        ("squeeze", [("index", "+0.500"), ("control", "-0.250")]),
        ("evaluation", [("agg", "0.500"), ("mem", "0.250"), ("utility", "0.750"), ("at step", "8")]),
    ]
    numbers.forget_training()
    assert [heading for heading, _ in numbers.groups()] == ["squeeze", "evaluation"]
