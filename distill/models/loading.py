"""Load models, tokenizers and configurations, and check that they fit each other and the data."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from optimum.utils import NormalizedConfig, NormalizedConfigManager, NormalizedTextConfig
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from distill.errors import ModelError, one_line
from distill.models.config import (
    INPUTS,
    POSITIONS_AFTER_PADDING,
    check_fit,
    check_outputs,
    check_task,
    class_names,
    is_classifier,
    most_tokens,
    name_classes,
    task_of,
)
from distill.models.names import AwayError, require_reachable
from distill.models.thresholds import CONFIG_KEY as THRESHOLDS
from distill.models.thresholds import thresholds_of
from distill.models.untrusted import (
    check_settings,
    check_tokenizer_settings,
    file_limit,
    keys_of,
    limit_size,
    memory_limit,
    read_settings,
)
from distill.models.weights import ADAPTER, weight_files
from distill.recipe.schema import Task
from distill.storage.checksums import ANSWERING, check_whole

# These have BERT's embeddings (word + token type + position, then LayerNorm), its layers, and a head that reads only
# the first token.
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
LAYER = re.compile(r"^(?!.*decoder).*?\b((?:layers?|\w*layer_groups|blocks?|h)\.\d+)\.")  # in the name of a weight
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "merges.txt")
TOKENIZER_CONFIG = "tokenizer_config.json"
HEADS = (
    "classifier",
    "score",
    "classification_head",
    "logits_proj",
    "sequence_summary",
)  # what architectures call their classification head
FORMER_KEY = "calibration_temperature"  # of models that an earlier version trained


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the fast tokenizer of a Hub name or local folder; raises `ModelError` if there is none."""
    require_reachable(name)
    folder = Path(name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise ModelError(f"{name}: has no tokenizer ({', '.join(TOKENIZER_FILES)})")
    check_whole(folder, ("tokenizer*", "special_tokens_map.json", "added_tokens.json", *TOKENIZER_FILES))
    with _reading(name, "no tokenizer can be loaded"):
        if found := cached_file(name, TOKENIZER_CONFIG, _raise_exceptions_for_missing_entries=False):
            check_tokenizer_settings(read_settings(Path(found)), name)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    # If files are missing, transformers 5 makes a tokenizer with only special tokens. RAG's "tokenizer" is a pair of
    # tokenizers and no PreTrainedTokenizerBase.
    is_fast = isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.is_fast
    if not is_fast or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{name}: has no fast tokenizer (tokenizer.json or a vocabulary)")
    _check_tokenizer(tokenizer, name)
    return tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `ModelError` if a setting of the tokenizer cannot be used; correct settings that change no answer."""
    limit, least = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add() + 1
    tokenizer.model_max_length = most_tokens(limit, least, name)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{name}: its tokenizer has no padding token, so texts of different lengths cannot share a batch",
                hint="set pad_token in tokenizer_config.json to any of its tokens; the attention mask hides it",
            )
        tokenizer.pad_token = tokenizer.eos_token  # any token will do, because the attention mask hides it
    tokenizer.padding_side = "right"  # the same positions in training, in exports and for other batches
    if not set(INPUTS) <= set(tokenizer.model_input_names):
        tokenizer.model_input_names = list(INPUTS)


def load_config(name: str) -> PretrainedConfig:
    """Return the configuration of a Hub name or local folder; raises `ModelError` if there is none."""
    require_reachable(name)
    check_whole(Path(name), (CONFIG_NAME,))
    if (Path(name) / ADAPTER).is_file():  # with peft installed, transformers would load the model that it names
        raise ModelError(f"{name}: {ADAPTER}: an adapter, not a model; merge it into its model and name the result")
    with _reading(name, "no model configuration can be loaded"):
        # Checked before AutoConfig reads it: some configuration classes make lists of whatever length they are told.
        check_settings(read_settings(Path(cached_file(name, CONFIG_NAME))), name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    _check_config(config, name)
    return config


def _check_config(config: PretrainedConfig, name: str) -> None:
    """Raise `ModelError` if a value that no library checks cannot be used; correct settings that change no answer."""
    classes: Any = config.architectures
    if classes is not None and not (isinstance(classes, list) and all(isinstance(one, str) for one in classes)):
        raise ModelError(f"{name}: config.json: architectures: wants a list of names of classes, got {classes!r:.80}")
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise ModelError(f"{name}: config.json: num_hidden_layers: wants a number above 0, got {layers}")
    if getattr(config, FORMER_KEY, None) is not None:
        raise ModelError(
            f"{name}: config.json: {FORMER_KEY}: an earlier version of distill kept the temperature there, and its "
            "logits are not calibrated without it; train again, or remove the key"
        )
    if config.model_type in POSITIONS_AFTER_PADDING and config.pad_token_id is None:
        raise ModelError(f"{name}: config.json: pad_token_id: missing; {config.model_type} counts positions from it")
    # These set the form of the output and the number of chunks it is computed in, not its values.
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    if hasattr(config, "use_cache"):  # keys and values for further tokens, which a classifier never reads
        config.use_cache = False
    if hasattr(config, "chunk_size_feed_forward"):
        config.chunk_size_feed_forward = 0


def load_classifier(
    name: str,
    label_names: Sequence[str],
    *,
    task: Task,
    seed: int,
    max_tokens: int,
    vocabulary: int,
    pretrained: bool = True,
    attention_dropout: float = 0.0,
) -> PreTrainedModel:
    """Return a sequence classifier over `label_names`, fp32: with pretrained weights, or random ones if not.

    If its head has the same classes in another order, they are reordered. Weights that are missing (usually the head's)
    are drawn with `seed`. `attention_dropout` replaces the model's own. Only safetensors are read, and no code in the
    model's folder is run. Raises `ModelError` if the model cannot be loaded, is no encoder that takes a head, has
    another number of classes, embeds fewer than `vocabulary` tokens, or takes fewer than `max_tokens`.
    """
    config = load_config(name)
    had = _classes_of_base(config, name, label_names, task, pretrained=pretrained)
    name_classes(config, label_names, task)
    drop_thresholds(config)
    check_fit(config, name, max_tokens=max_tokens, vocabulary=vocabulary)
    config = with_attention_dropout(config, attention_dropout)
    set_seed(seed)
    if not pretrained:
        skeleton(name, config)
        with _reading(name, "no classifier can be made"):
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model, missing = load_weights(name, config, torch.float32)
    # A head and a pooler may be new. An encoder with some random weights would train, but badly, and nobody would know.
    prefix = f"{model.base_model_prefix}."
    random = [key for key in missing if key.startswith(prefix) and ".pooler." not in key]
    if random:
        raise ModelError(f"{name}: the weights lack {len(random)} tensors of the encoder, first {min(random)}")
    if had != tuple(label_names) and set(had) == set(label_names):
        return reorder_classes(model, [had.index(label) for label in label_names], label_names)
    return model


def drop_thresholds(config: PretrainedConfig) -> None:
    """Remove the thresholds, which are for the logits before a training."""
    vars(config).pop(THRESHOLDS, None)


def check_base(name: str, label_names: Sequence[str] | None, task: Task, *, pretrained: bool = True) -> None:
    """Raise what `load_classifier` would for the model `name`, if its configuration and file names show it.

    `label_names` are the recipe's; None if the data names its classes. No weights are fetched.
    """
    _classes_of_base(load_config(name), name, label_names, task, pretrained=pretrained)
    if pretrained and Path(name).is_dir():
        _safetensors_of(name)


def _classes_of_base(
    config: PretrainedConfig, name: str, label_names: Sequence[str] | None, task: Task, *, pretrained: bool
) -> tuple[str, ...]:
    """Return the class names of a model that is to be trained, none if it is no classifier.

    Raises `ModelError` if they are not as many as `label_names`, or if its head is to be kept and is for another task.
    """
    if not is_classifier(config):
        return ()
    if pretrained:
        check_task(task_of(config, name), task, name)
    had = class_names(config, name)
    if label_names and len(had) != len(label_names):
        raise ModelError(
            f"{name}: classifies into {len(had)} classes, the data has {len(label_names)}: {', '.join(label_names)}"
        )
    return had


def _safetensors_of(name: str) -> list[Path]:
    files = weight_files(name)
    if files[0].suffix != ".safetensors":
        raise ModelError(f"{name}: an export, which can only predict; name the model that it was made from")
    return files


def load_weights(
    name: str, config: PretrainedConfig, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, Sequence[str]]:
    """Return the classifier `name` with the weights of its safetensors files, and the names of missing weights.

    Raises `ModelError` if there are no such files (a pickle is not read, because it can run code), if they are damaged,
    or if a weight has another shape than the configuration says.
    """
    check_whole(Path(name), ANSWERING)
    files = _safetensors_of(name)
    with _reading(name, "its weights cannot be loaded"), limit_size(file_limit(files), name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    layers = {found[1] for key in model.state_dict() if (found := LAYER.search(key))}
    named = {key: found[1] for key in report["unexpected_keys"] if (found := LAYER.search(key))}
    if unused := sorted(key for key, layer in named.items() if layer not in layers):
        raise ModelError(
            f"{name}: its weights hold layers that its config.json leaves out: {len(unused)} weights, first {unused[0]}"
        )
    prefix = f"{model.base_model_prefix}."
    for key, found, wanted in sorted(report["mismatched_keys"]):
        if key.startswith(prefix):
            raise ModelError(
                f"{name}: its weights do not fit its config.json: {key} is {list(found)}, not {list(wanted)}"
            )
        if is_classifier(config) and wanted[0] == config.num_labels:
            check_outputs(found[0], wanted[0], name)
    # A head of another shape is for another task, so it counts as missing.
    return model, sorted({*report["missing_keys"], *(key for key, _, _ in report["mismatched_keys"])})


@contextlib.contextmanager
def _reading(name: str, problem: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a model's files into a `ModelError` of one line."""
    try:
        yield
    except ModelError:
        raise
    except SafetensorError as error:
        reason = f"damaged or half downloaded: {one_line(error)}"
        raise ModelError(f"{name}: {problem}: {reason}", hint="fetch it again") from error
    except Exception as error:  # from a KeyError to tokenizers' bare Exception
        kind = ModelError if Path(name).is_dir() else AwayError
        reason = one_line(error)
        if isinstance(error, KeyError) and (keys := keys_of(error.args[0], read_settings(Path(name, CONFIG_NAME)))):
            reason = f"config.json: {', '.join(keys)}: {reason} is not known"  # a KeyError names only the value
        raise kind(f"{name}: {problem}: {reason}") from error


def with_attention_dropout(config: PretrainedConfig, dropout: float) -> PretrainedConfig:
    """Return the configuration with this dropout of attention probabilities, whatever the architecture calls it.

    Raises `ModelError` if it is above 0 and the architecture has no such setting.
    """
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            config = copy.deepcopy(config)
            setattr(config, name, dropout)
            return config
    if dropout:
        raise ModelError(f"attention_dropout: {config.model_type} has no such setting; leave it out")
    return config


def layer_count(config: PretrainedConfig) -> int:
    """Return the number of transformer layers, whatever the architecture calls it (`n_layers` in DistilBERT)."""
    return normalized_config(config).num_layers


def reorder_classes(model: PreTrainedModel, columns: Sequence[int], label_names: Sequence[str]) -> PreTrainedModel:
    """Reorder the classes of `model` so that class i is its former class `columns[i]`; name them and return it."""
    head = classification_head(model)
    with torch.no_grad():
        head.weight.copy_(head.weight[list(columns)])
        if head.bias is not None:
            head.bias.copy_(head.bias[list(columns)])
    if (thresholds := thresholds_of(model.config)) is not None:
        setattr(model.config, THRESHOLDS, [thresholds[column] for column in columns])
    name_classes(model.config, label_names, task_of(model.config, model.config.name_or_path))
    return model


def divide_logits(model: PreTrainedModel, temperature: float) -> None:
    """Divide all logits of `model` by `temperature`, through the weights of its head.

    So whatever reads the weights computes calibrated logits. Raises `ModelError` if the head is not to be found.
    """
    head = classification_head(model)
    with torch.no_grad():
        for weights in (head.weight, head.bias):
            if weights is not None:
                weights.div_(temperature)


def classification_head(model: PreTrainedModel) -> nn.Linear:
    """Return the linear layer that makes the logits; raises `ModelError` if it is not to be found.

    It is looked for by the name of the head, because other modules may come after it.
    """
    for name in HEADS:
        head = getattr(model, name, nn.Identity())
        outputs = [part for part in head.modules() if isinstance(part, nn.Linear)]
        if outputs and outputs[-1].out_features == model.config.num_labels:
            return outputs[-1]
    raise ModelError(f"{type(model).__name__}: has no linear layer with an output for each class in {', '.join(HEADS)}")


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_of(name: str) -> int:
    """Return the number of parameters of a model folder or Hub name; only its configuration is read.

    Raises `ModelError` if that is not the configuration of a classifier or an encoder.
    """
    return parameter_count(skeleton(name, load_config(name)))


def skeleton(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """Return the classifier of a configuration on torch's device "meta": it has shapes, but no weights.

    Raises `ModelError` about the model `name` if the configuration is not of a classifier or an encoder, or if the
    model would not fit into this machine's memory.
    """
    with _reading(name, "no classifier can be made of it"), limit_size(memory_limit(), name), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def layer_list(model: PreTrainedModel, count: int) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the transformer layers: the only ModuleList of length `count`."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and name.split(".")[-1] in ("layer", "layers")
    ]
    if len(lists) != 1:
        raise ModelError(
            f"student.layers: cannot tell which modules of {type(model).__name__} are its layers; give "
            "student.model or student.config instead"
        )
    return lists[0]


def normalized_config(config: PretrainedConfig) -> NormalizedConfig:
    """Return optimum's view of the configuration, which has the same names for the sizes of all architectures."""
    try:
        return NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:  # most newer architectures use the usual names
        return NormalizedTextConfig(config)


def config_fingerprint(name: str) -> str:
    """Return the SHA-256, in hex, of the config.json of a Hub name or local folder."""
    load_config(name)  # raises an error with the reason if there is none
    return hashlib.sha256(Path(cached_file(name, CONFIG_NAME)).read_bytes()).hexdigest()
