"""Load models, tokenizers and configurations, and check that they fit each other and the data."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
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

from distill.data.encoding import NO_LIMIT
from distill.errors import ModelError, one_line
from distill.models.names import AwayError, require_reachable
from distill.models.thresholds import CONFIG_KEY as THRESHOLDS
from distill.models.thresholds import SEVERAL, thresholds_of
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
from distill.recipe.labels import SAME_NAMES, classes_of, renamed
from distill.recipe.schema import Task
from distill.storage.checksums import ANSWERING, check_whole

# These number positions from pad_token_id + 1, as fairseq does, so the earlier rows of the position table are unused.
POSITIONS_AFTER_PADDING = {
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "data2vec-text",
    "ibert", "luke", "xmod",
}  # fmt: skip
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
INPUTS = ("input_ids", "attention_mask")  # of every model; without token_type_ids, models take all token types as 0
FORMER_KEY = "calibration_temperature"  # of models that an earlier version trained
TOKEN_TYPES = "token_type_ids"  # which text of a pair a token is of
# What transformers calls the tasks; its pipeline uses a softmax for one, and a sigmoid for the other.
PROBLEM_TYPES: dict[Task, str] = {"single_label": "single_label_classification", "multi_label": SEVERAL}


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
    is_whole = type(limit) is int or (isinstance(limit, float) and (limit.is_integer() or limit == math.inf))
    if not is_whole or limit < least:
        raise ModelError(
            f"{name}: tokenizer_config.json: model_max_length: wants a whole number of tokens, at least {least} (one "
            f"plus the special tokens), got {limit!r:.50}"
        )
    tokenizer.model_max_length = int(min(limit, NO_LIMIT))
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


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, *, added: bool = True) -> int:
    """Return how many embeddings a model needs for the tokenizer: its highest id plus 1.

    Without the `added` tokens, only those count that any text may have: pieces, and the special tokens around them.
    Some tokenizers have more added tokens than their model has embeddings, which does no harm until a text uses one.
    """
    if added:
        return max(tokenizer.get_vocab().values(), default=-1) + 1
    backend: Any = tokenizer.backend_tokenizer
    pieces, around = backend.get_vocab(with_added_tokens=False).values(), backend.encode("").ids
    used: tuple[Any, ...] = (*pieces, *around, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return max((token for token in used if token is not None), default=-1) + 1


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


def share_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model the tokenizer's padding token: decoders need it to find the end of a text.

    Architectures that count positions from their own padding token keep it.
    """
    if config.model_type not in POSITIONS_AFTER_PADDING:
        config.pad_token_id = tokenizer.pad_token_id


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


def check_fit(config: PretrainedConfig, name: str, *, max_tokens: int, vocabulary: int) -> None:
    """Raise `ModelError` if the model takes fewer tokens than `max_tokens` or embeds fewer than `vocabulary`."""
    limit = token_limit(config)
    if limit is not None and max_tokens > limit:
        raise ModelError(f"{name}: takes at most {limit} tokens, but data.max_tokens is {max_tokens}")
    size = embeddings_of(config)
    if vocabulary > size:
        raise ModelError(
            f"{name}: embeds {size} tokens, but the tokenizer's ids go up to {vocabulary - 1}: they do not fit together"
        )


def embeddings_of(config: PretrainedConfig) -> float:
    """Return how many tokens the model embeds; infinite if it has no table (CANINE reads characters)."""
    return getattr(config, "vocab_size", None) or math.inf


def token_limit(config: PretrainedConfig) -> int | None:
    """Return how many tokens the position table takes; None if the architecture has none (relative positions)."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    return positions - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """Return the row of the position table that a text's first token gets."""
    if config.model_type in POSITIONS_AFTER_PADDING:
        return config.pad_token_id + 1
    return 2 if config.model_type == "mpnet" else 0  # as if its padding token were always 1


def is_classifier(config: PretrainedConfig) -> bool:
    """Say whether the configuration is of a model that already has a classification head."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def task_of(config: PretrainedConfig, name: str) -> Task:
    """Return whether the classifier of this configuration gives a text one label or several.

    Raises `ModelError` if it gives a number (regression), or if transformers knows no such task.
    """
    known = (*PROBLEM_TYPES.values(), "regression")
    if config.problem_type is not None and config.problem_type not in known:
        raise ModelError(
            f"{name}: config.json: problem_type: wants one of {', '.join(known)}, got {config.problem_type!r:.80}"
        )
    if config.problem_type == "regression" or config.num_labels == 1:
        raise ModelError(
            f"{name}: config.json: gives a text a number (regression: problem_type, or a single output); distill "
            "supports only classes"
        )
    return "multi_label" if config.problem_type == PROBLEM_TYPES["multi_label"] else "single_label"


def check_task(its: Task, task: Task, name: str) -> None:
    """Raise `ModelError` if `its`, the task of the model `name`, is not the data's."""
    if its != task:
        labels = {"single_label": "one label", "multi_label": "any number of labels"}
        raise ModelError(f"{name}: gives a text {labels[its]}, but data.task is {task}: a text has {labels[task]}")


def class_names(config: PretrainedConfig, name: str) -> tuple[str, ...]:
    """Return the class names in the configuration of the model `name`, in the order of its outputs.

    Raises `ModelError` if an output has no name, if a name is not text, or if two classes have the same name.
    """
    found = config.id2label
    if sorted(found) != list(range(len(found))):
        raise ModelError(
            f"{name}: config.json: id2label: wants a name for each of 0 to {len(found) - 1}, got names for "
            f"{', '.join(map(str, sorted(found)))}"
        )
    for index, named in found.items():
        if type(named) not in (str, int) or named == "":  # a whole number becomes text
            raise ModelError(
                f"{name}: config.json: id2label: wants text for the name of class {index}, got {named!r:.80}"
            )
    names = tuple(str(found[index]) for index in range(len(found)))
    if len(set(names)) < len(names):
        raise ModelError(f"{name}: config.json: id2label: two classes have the same name")
    return names


def name_classes(config: PretrainedConfig, label_names: Sequence[str], task: Task) -> None:
    """Set up the configuration for these classes, of which a text has one or, with "multi_label", any number."""
    config.id2label = dict(enumerate(label_names))
    config.label2id = {label: index for index, label in enumerate(label_names)}
    config.problem_type = PROBLEM_TYPES[task]


def check_outputs(outputs: int, classes: int, name: str) -> None:
    """Raise `ModelError` if the model `name` has more or fewer `outputs` than the `classes` in its config.json."""
    if outputs != classes:
        raise ModelError(f"{name}: has {outputs} outputs, but its config.json (id2label) names {classes} classes")


def layer_count(config: PretrainedConfig) -> int:
    """Return the number of transformer layers, whatever the architecture calls it (`n_layers` in DistilBERT)."""
    return normalized_config(config).num_layers


def align_labels(
    teacher_labels: Sequence[str],
    label_names: Sequence[str],
    label_map: Mapping[str, str] = SAME_NAMES,
    *,
    teacher: str,
) -> list[int]:
    """Return for each of `label_names` the teacher's column of that name, which `label_map` may call otherwise.

    Names match like labels: case and white space do not matter. If they match without the map, it is not used: a model
    that distill trained has the new names already. A teacher without names of its own ("LABEL_0", "LABEL_1", ...) is
    assumed to use the data's order, if there is no map. Raises `ModelError` if the names or their number differ.
    """
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in teacher_labels)
    for named in (list(teacher_labels), [renamed(label, label_map) for label in teacher_labels]):
        if len(set(named)) == len(named) == len(label_names):
            classes = list(classes_of(named, label_names, indices=False).values())
            if set(classes) == set(range(len(label_names))):
                return [classes.index(index) for index in range(len(label_names))]
    if unnamed and len(teacher_labels) == len(label_names) and not label_map:
        return list(range(len(label_names)))
    raise ModelError(
        f"{teacher}: its classes ({', '.join(teacher_labels)}) are not the data's ({', '.join(label_names)})",
        hint="--set data.label_map={THEIRS: OURS} says which is which",
    )


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


def inputs_of(config: PretrainedConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the `given` inputs that the model reads: token types only if it has several."""
    names = [*INPUTS, TOKEN_TYPES] if getattr(config, "type_vocab_size", 0) > 1 else INPUTS
    return {name: given[name] for name in names if given.get(name) is not None}


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
