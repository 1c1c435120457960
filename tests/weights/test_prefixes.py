"""Where in a file the model is, by a model of three names."""

import pytest

from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.weights.prefixes import MAX_DEPTH, describe, find_model

MODEL = ("backbone.blocks.0.weight", "backbone.pos", "head.weight")


def owns(_, names):
    return {*MODEL} <= {*names}


def behind(prefix):
    return [prefix + name for name in MODEL]


def found(*names, key=None, prefix=None):
    return find_model({"": names}, owns, where="x.pth", key=key, prefix=prefix)


def test_a_plain_file_is_taken_as_it_is_and_in_silence():
    plain = found(*MODEL)
    assert plain.names == dict(zip(MODEL, MODEL, strict=True))
    assert describe(plain, "x.pth") is None


PREFIXES = ["module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.net.", "my.own."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "backbone.", "head.", "w." * MAX_DEPTH])
def test_what_stands_before_all_names_is_taken_off(prefix):
    one = found(*behind(prefix))
    assert one.prefix == prefix
    assert one.names == {name: prefix + name for name in MODEL}
    assert describe(one, "x.pth") == f"x.pth: '{prefix}' stands before their names."


@pytest.mark.parametrize("word", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_words_that_frameworks_insert_within_names(word, prefix):
    names = [prefix + name.replace("backbone.", f"backbone.{word}.") for name in MODEL]
    one = found(*names)
    assert one.names == dict(zip(MODEL, names, strict=True))
    assert f"{word} stood within their names" in describe(one, "x.pth")


def test_counters_and_what_stands_elsewhere_are_left_out_aloud():
    one = found(*behind("module."), "n_averaged", "loss.weight")
    assert one.outside == ("n_averaged", "loss.weight")
    assert describe(one, "x.pth").endswith("left out: n_averaged, loss.weight.")
    assert found(*MODEL, "n_averaged").outside == ("n_averaged",)


def test_a_surplus_tensor_among_the_models_own_stays():
    """The table of the family decides about it."""
    assert "extra" in found(*behind("module."), "module.extra").names
    assert "extra" in found(*MODEL, "extra").names


@pytest.mark.parametrize("copy", ["ema.", "model_ema.", "ema_model.module.", "params_ema.", "swa.", "averaged."])
def test_an_averaged_copy_is_left_out_aloud(copy):
    one = found(*behind(copy), *behind("model."))
    assert one.prefix == "model."
    assert f"{copy.rstrip('.')} holds an averaged copy, left out" in describe(one, "x.pth")
    assert found(*behind(copy), *behind("model."), prefix=copy).prefix == copy
    assert found(*behind(copy), *behind("model."), prefix=copy.rstrip(".")).prefix == copy


def test_an_averaged_copy_alone_is_taken_and_said():
    assert "an averaged copy, the only model there" in describe(found(*behind("ema.")), "x.pth")


def test_two_models_are_an_error_that_lists_them():
    with pytest.raises(CheckpointError, match=r"holds 2 models \('student\.', 'teacher\.'\): choose one with --prefix"):
        found(*behind("student."), *behind("teacher."))
    parts = {"a": MODEL, "b": MODEL}
    with pytest.raises(CheckpointError, match=r"x\.pth holds 2 models \('a', 'b'\): choose one with --key"):
        find_model(parts, owns, where="x.pth")
    assert find_model(parts, owns, where="x.pth", key="b").key == "b"
    mixed = {"a": [*behind("s."), *behind("t.")], "b": MODEL}
    with pytest.raises(CheckpointError, match=r"\('a\.s', 'a\.t', 'b'\): choose one with --key and --prefix"):
        find_model(mixed, owns, where="x.pth")
    assert find_model(mixed, owns, where="x.pth", key="a", prefix="t").place == "a.t"


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "module", "net", "params", "generator", "model_state_dict", "0"]
)
def test_the_dict_that_holds_a_model_is_taken_whatever_it_is_called(key):
    parts = {"": ["best_loss"], key: behind("module."), "discriminator": ["a", "b", "c", "d"], "optimizer.0": ["step"]}
    one = find_model(parts, owns, where="x.pth")
    assert (one.key, one.prefix) == (key, "module.")
    said = describe(one, "x.pth", ["best_loss", "optimizer"])
    assert said == (
        f"x.pth: the weights are under '{key}'; 'module.' stands before their names; left out: best_loss, optimizer."
    )


def test_a_copy_under_a_key_of_its_own_and_the_moments_of_an_optimizer():
    parts = {"params": MODEL, "params_ema": MODEL, "optimizer.exp_avg": MODEL}
    one = find_model(parts, owns, where="x.pth")
    assert (one.key, one.copies) == ("params", ("params_ema",))
    assert find_model(parts, owns, where="x.pth", key="params_ema").key == "params_ema"


def test_where_no_model_is_the_largest_dict_is_taken_without_its_prefix():
    parts = {"optimizer.state": [f"{i}.step" for i in range(9)], "model": ["m.a.x", "m.a.y", "m.b"], "": ["n"]}
    one = find_model(parts, owns, where="x.pth")
    assert (one.key, one.prefix, [*one.names]) == ("model", "m.", ["a.x", "a.y", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "ema"}, r"no tensors under the key 'ema': its keys with tensors are none"),
        ({"prefix": "net"}, r"no names behind the prefix 'net': its names begin with backbone, head"),
    ],
)
def test_choices_that_are_not_there(options, message):
    with pytest.raises(OptionError, match=message):
        found(*MODEL, **options)


def test_thousands_of_deep_names_take_no_time():
    names = [".".join(f"w{i}" for i in range(400)) + f".{j}" for j in range(3000)]
    assert len(found(*names).names) == 3000
