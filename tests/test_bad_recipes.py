"""Recipes with mistakes: all are reported at once, each in one line with its place, and nothing is written."""

import pytest
from conftest import check_refused
from test_recipe import GOOD

CASES = {
    "metric": (
        GOOD + "  training: {metric_for_best_model: f1}\n",
        ["7: student.training.metric_for_best_model: got 'f1'; one of accuracy, macro_f1"],
    ),
    "the best of none": (
        GOOD + "  training: {eval_strategy: no, save_strategy: best}\n",
        ["7: student.training.save_strategy: got 'best', which needs evaluations, but eval_strategy is no"],
    ),
    "steps apart": (
        GOOD + "  training: {eval_strategy: steps, eval_steps: 100, save_steps: 500}\n",
        ["7: student.training.save_steps: got 500, but evaluations are every 100 steps"],
    ),
    "patience for nothing": (
        GOOD + "  training: {eval_strategy: no}\n  early_stopping_patience: 2\n",
        ["5: student: early_stopping_patience needs evaluations"],
    ),
    "unknown key": (GOOD + "  temprature: 2\n", ["7: student.temprature: unknown key"]),
    "did you mean": (GOOD.replace("teacher:", "teecher:"), ["3: teecher: unknown key; did you mean teacher?"]),
    "wrong type": (
        GOOD.replace("[0, 2]", "zero"),
        ["6: student.layers: wants a number of layers, or a"],
    ),
    "number as text": (
        GOOD + '  loss: {temperature: "2"}\n',
        ["7: student.loss.temperature: wants a number"],
    ),
    "out of range": (GOOD + "  loss: {soft_weight: 1.5}\n", ["7: student.loss.soft_weight: wants a share from 0 to 1"]),
    "not a number": (GOOD + "  loss: {temperature: .nan}\n", ["7: student.loss.temperature: wants a number"]),
    "equal key twice": (GOOD + "  layers: [1]\n", ["7: found duplicate key"]),
    "a date": (
        GOOD + "  training: {num_train_epochs: 2020-01-01, seed: 2020-13-45}\n",
        ["num_train_epochs: wants float, got '2020-01-01'", "seed: wants int, got '2020-13-45'"],
    ),
    "bytes": (GOOD + "  training: {seed: !!binary aGk=}\n", ["7: could not determine a constructor for the tag"]),
    "a set": (GOOD + "  training: {report_to: !!set {a}}\n", ["7: could not determine a constructor for the tag"]),
    "tab": (GOOD + "\tloss: {}\n", ["7: found character"]),
    "no mapping": ("- a\n", ["wants keys and values"]),
    "empty": ("", ["wants keys and values"]),
    "missing": ("teacher: {model: x}\n", ["data: missing"]),
    "two sources": (
        GOOD.replace("imdb\n", "imdb\n  files: {train: a.csv, test: b.csv}\n"),
        ["1: data: wants either"],
    ),
    "two students": (GOOD + "  model: x\n", ["5: student: wants one of model"]),
    "no layers": (GOOD.replace("[0, 2]", "0"), ["6: student.layers: wants a number of layers"]),
    "three origins": (GOOD + "  config: {hidden_size: 8}\n", ["5: student: wants one of model"]),
    "half a schedule": (GOOD + "  loss: {temperature: {start: 4}}\n", ["7: student.loss.temperature.end: missing"]),
    "schedule out of range": (
        GOOD + "  loss: {soft_weight: {start: 1, end: -1}}\n",
        ["7: student.loss.soft_weight: wants a share from 0 to 1, got {'start': 1.0, 'end': -1.0}"],
    ),
    "schedule typo": (
        GOOD + "  loss: {temperature: {start: 4, ende: 1, end: 1}}\n",
        ["7: student.loss.temperature.ende: unknown key; did you mean end?"],
    ),
    "cold": (
        GOOD + "  loss: {temperature: 0}\n",
        ["7: student.loss.temperature: wants a temperature above 0, got 0.0"],
    ),
    "unknown loss": (GOOD + "  loss: {soft: kd}\n", ["7: student.loss.soft: input should be 'soft_targets'"]),
    "negative weight": (
        GOOD + "  loss: {hidden_states: {weight: -1}}\n",
        ["7: student.loss.hidden_states.weight: wants a weight of 0"],
    ),
    "teacher for nothing": (
        GOOD + "  teacher_weights: [1, 0]\n",
        ["7: student.teacher_weights.1: input should be greater than 0"],
    ),
    "all dropped": (GOOD + "  attention_dropout: 1\n", ["7: student.attention_dropout: input should be less than 1"]),
    "layers fall": (
        GOOD.replace("[0, 2]", "[2, 0]"),
        ["6: student.layers: wants one or more layers in rising order, none twice, got [2, 0]"],
    ),
    "old name": (
        GOOD + "  training: {evaluation_strategy: epoch}\n",
        ["7: student.training.evaluation_strategy: renamed eval_strategy in transformers 4.46"],
    ),
    "a tagged class name": (
        GOOD.replace("imdb\n", "imdb\n  label_names: [!!binary aGk=, b]\n"),
        ["3: could not determine"],
    ),
    "a tag of another type": (GOOD + "export: {max_accuracy_drop: !!bool 5}\n", ["has a tag of another type"]),
    "gone": (
        GOOD + "  training: {group_by_length: true}\n",
        ["7: student.training.group_by_length: gone in transformers 5; leave it out: micro-batches"],
    ),
    "training typo": (
        GOOD + "  training: {learning_rat: 1}\n",
        ["7: student.training.learning_rat: not a field of transformers' TrainingArguments; did you mean learning"],
    ),
    "training type": (
        GOOD + "  training:\n    num_train_epochs: two\n",
        ["8: student.training.num_train_epochs: wants float, got 'two'"],
    ),
    "training choice": (
        GOOD + "  training: {eval_strategy: epok}\n",
        ["7: student.training.eval_strategy: got 'epok'; did you mean epoch?"],
    ),
    "ours to set": (
        GOOD + "  training: {output_dir: x}\n",
        ["7: student.training.output_dir: set by distill; write output: next to training:"],
    ),
    "not supported": (
        GOOD + "  training: {deepspeed: x.json}\n",
        ["7: student.training.deepspeed: not supported; fsdp: true shards"],
    ),
    "shards by words": (
        GOOD + "  training: {fsdp: full_shard}\n",
        ["7: student.training.fsdp: wants true or false, got 'full_shard'; the rest belongs in fsdp_config"],
    ),
    "shards of a file": (
        GOOD + "  training: {fsdp: true, fsdp_config: a.json}\n",
        ["7: student.training.fsdp_config: wants a mapping, got 'a.json'"],
    ),
    "shards that are off": (
        GOOD + "  training: {fsdp_config: {version: 2}}\n",
        ["7: student.training.fsdp_config: does nothing without fsdp: true"],
    ),
    "shards half wrong": (
        GOOD + "  training: {fsdp: true, save_only_model: true, fsdp_config: {version: 1, reshard_after_forwards: true,"
        " activation_checkpointing: true, state_dict_type: LOCAL, transformer_layer_cls_to_wrap: BertLayer}}\n",
        [
            "7: student.training.fsdp_config.version: wants one of 2, got 1",
            "7: student.training.fsdp_config.reshard_after_forwards: not a key here; did you mean reshard_af",
            "7: student.training.fsdp_config.activation_checkpointing: recomputes activations",
            '7: student.training.fsdp_config.state_dict_type: wants one of "FULL_STATE_DICT", "SHARDED',
            "7: student.training.fsdp_config.transformer_layer_cls_to_wrap: wants a list of layer class names, got",
            "7: student.training.save_only_model: leaves nothing",
        ],
    ),
    "shape": (GOOD + "benchmark: {shapes: [8*128]}\n", ["7: benchmark.shapes: wants BATCHxTOKENS such as 8x128, got"]),
    "format": (GOOD + "export: {formats: [onnx-int4]}\n", ["7: export.formats.0: input should be 'torch-fp16'"]),
    "one label": (GOOD.replace("imdb\n", "imdb\n  label_names: [a]\n"), ["3: data.label_names: "]),
    "label twice": (GOOD.replace("imdb\n", "imdb\n  label_names: [a, a]\n"), ["3: data.label_names: the same name"]),
    "not UTF-8": (b"data: \xff\n", ["not UTF-8 at byte 6"]),
    "control character": (b"data: \x00\n", [""]),
    "alias that holds itself": ("data: &a\n  files: *a\n", [""]),
    "deep": ("a: " + "[" * 300_000, ["nested too deeply"]),
    "deep behind others": ("# " + "]" * 9_000 + "\na: " + "[" * 9_000, ["nested too deeply"]),
    "deep blocks": ("- " * 3_000, ["nested too deeply"]),
    "blocks of some depth": (
        GOOD.replace("layers: [0, 2]\n", "config:\n") + "".join(" " * (4 + depth) + "a:\n" for depth in range(150)),
        ["nested too deeply"],
    ),
    "everything at once": (
        "data: {dataset: a/b, seed: x}\nteacher: {model: 3}\nstudent: {layers: [-1], training: {lr: 1}}\n",
        ["1: data.seed: ", "2: teacher.model: ", "3: student.layers: ", "3: student.training.lr: "],
    ),
    "aliases of aliases": (
        "data: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"k{n}: &{chr(98 + n)} [{', '.join(9 * ['*' + chr(97 + n)])}]\n" for n in range(9)),
        ["too many values for a recipe after its aliases are expanded"],
    ),
    "merge keys of merge keys": (
        "a: &a {x: 1}\n"
        + "".join(f"k{n}: &{chr(98 + n)} {{<<: [{', '.join(9 * ['*' + chr(97 + n)])}]}}\n" for n in range(9)),
        ["too many values for a recipe after its aliases are expanded"],
    ),
    "a list for a key": (GOOD + "  training:\n    ? [a, b]\n    : c\n", ["8: wants a name as key"]),
    "half a surrogate pair": (GOOD + '  output: "\\ud800"\n', ["half a surrogate pair"]),
    "thousands of hexadecimal digits": (GOOD + f"  training: {{seed: 0x{'f' * 5000}}}\n", ["thousands of digits"]),
    "a mistake that an alias repeats": (
        GOOD.replace("google-bert/bert-base-uncased\n", "x\n  training: &a {lr: 1}\n") + "  training: *a\n",
        ["5: teacher.training.lr: ", "5: student.training.lr: "],
    ),
    "a tag that makes an object": (
        "data: !!python/object/apply:os.system ['touch here']\n",
        ["1: could not determine a constructor"],
    ),
    "two documents": (GOOD + "---\n" + GOOD, ["7: but found another document"]),
    "a merge key": ("a: &a {x: 1}\ndata:\n  <<: *a\n  dataset: x/y\n", ["a: unknown key", "x: unknown key"]),
    "a date that is none": (
        GOOD + "benchmark: 2020-13-45\n",
        ["7: benchmark: input should be an object, got '2020-13-45'"],
    ),
    "an empty section": (GOOD + "benchmark:\n", ["7: benchmark: input should be"]),
    "a list for a section": (GOOD + "export: [onnx-int8]\n", ["7: export: "]),
    "an empty name": (GOOD.replace("google-bert/bert-base-uncased", '""'), ["4: teacher.model: "]),
    "a number for a name": (GOOD.replace("google-bert/bert-base-uncased", "17"), ["4: teacher.model: "]),
    "no formats": (GOOD + "export: {formats: []}\n", ["7: export.formats: wants one or more, got none"]),
    "no teacher's weight": (GOOD + "  teacher_weights: []\n", ["7: student.teacher_weights: wants one or more"]),
    "no layers to match": (
        GOOD + "  loss: {hidden_states: {teacher_layers: []}}\n",
        ["7: student.loss.hidden_states.teacher_layers: wants one or more"],
    ),
    "thousands of digits": (
        GOOD + f"  training: {{seed: {'9' * 5000}}}\n",
        ["a number of thousands of digits"],
    ),
    "a number beyond fractions": (
        GOOD + f"  loss: {{temperature: {10**400}}}\n",
        ["7: student.loss.temperature: wants a number"],
    ),
    "no shapes": (GOOD + "benchmark: {shapes: []}\n", ["7: benchmark.shapes: "]),
    "few rounds": (GOOD + "benchmark: {rounds: 2}\n", ["7: benchmark.rounds: input should be greater than or equal"]),
    "no threads": (GOOD + "benchmark: {threads: 0}\n", ["7: benchmark.threads: "]),
    "a whole fraction": (GOOD.replace("imdb\n", "imdb\n  validation_fraction: 1\n"), ["3: data.validation_fraction: "]),
    "a negative sample": (GOOD.replace("imdb\n", "imdb\n  train_samples: -5\n"), ["3: data.train_samples: "]),
    "a yes for a number": (GOOD.replace("imdb\n", "imdb\n  max_tokens: true\n"), ["3: data.max_tokens: "]),
    "two tokens": (GOOD.replace("imdb\n", "imdb\n  max_tokens: 2\n"), ["3: data.max_tokens: "]),
    "a huge seed": (GOOD.replace("imdb\n", "imdb\n  seed: 99999999999\n"), ["3: data.seed: "]),
    "a padding that is none": (GOOD.replace("imdb\n", "imdb\n  padding: left\n"), ["3: data.padding: "]),
    "a drop above one": (GOOD + "export: {max_accuracy_drop: 1.5}\n", ["7: export.max_accuracy_drop: "]),
    "infinite": (
        GOOD + "export: {max_accuracy_drop: .inf}\n",
        ["7: export.max_accuracy_drop: input should be a finite"],
    ),
    "a format twice removed": (GOOD + "export: {formats: onnx-int8}\n", ["7: export.formats: "]),
    "a training that is none": (GOOD + "  training: fast\n", ["7: student.training: "]),
    "a key that is a number": (GOOD + "  training: {1: 2}\n", ["7: student.training.1: not a field"]),
    "a token in a recipe": (GOOD + "  training: {hub_token: hf_x}\n", ["7: student.training.hub_token: not supported"]),
    "a flow that does not end": (GOOD + "  training: {a: 1\n", ["expected"]),
    "a quote that does not end": (
        GOOD + '  output: "x\n',
        [
            "8: found unexpected end of stream",
        ],
    ),
    "a search for nothing": (GOOD + "sweep: {keys: {}}\n", ["7: sweep.keys: dictionary should have at least 1 item"]),
    "a search in no space": (
        GOOD + "sweep:\n  keys:\n    student.loss.temperature: 2\n",
        ["9: sweep.keys.student.loss.temperature: wants a list of values, or {low: ..., high: ...}, got 2"],
    ),
    "spaces that are none": (
        GOOD + "sweep:\n  keys:\n"
        "    student.loss.temperature: [1]\n"
        "    student.training.weight_decay: [1, 1.0]\n"
        "    student.training.learning_rate: {low: 1, hihg: 2}\n"
        "    student.training.adam_beta1: {low: 0.5}\n"
        "    student.training.adam_beta2: {low: 0.9, high: 0.5}\n"
        "    student.training.max_grad_norm: {low: 0.0, high: 1.0, log: true}\n"
        "    student.training.max_steps: {low: 1, high: 2}\n"
        "    student.training.num_train_epochs: {low: one, high: .inf}\n",
        [
            "9: sweep.keys.student.loss.temperature: wants two values or more, each once, got [1]",
            "10: sweep.keys.student.training.weight_decay: wants two values or more, each once, got [1, 1.0]",
            "11: sweep.keys.student.training.learning_rate.hihg: unknown key; did you mean high?",
            "12: sweep.keys.student.training.adam_beta1: wants a list of values, or both low and high",
            "13: sweep.keys.student.training.adam_beta2: wants low below high, got 0.9 and 0.5",
            "14: sweep.keys.student.training.max_grad_norm: wants low above 0 if log is true, got 0.0",
            "15: sweep.keys.student.training.max_steps: wants [1, 2] for these two, or 1.0 and 2.0 for the range",
            "16: sweep.keys.student.training.num_train_epochs.low: wants a number, got 'one'",
            "16: sweep.keys.student.training.num_train_epochs.high: wants a number, got inf",
        ],
    ),
    "a search over a key and its own part": (
        GOOD + "sweep:\n  keys:\n"
        "    student.loss.hidden_states.weight: [1.0, 2.0]\n"
        "    student.loss.hidden_states: [null, {weight: 3.0}]\n",
        [
            "sweep: wants keys that do not contain each other, got student.loss.hidden_states and "
            "student.loss.hidden_states.weight"
        ],
    ),
    "a search over what trials share": (
        GOOD + "sweep:\n  keys:\n"
        "    data.max_tokens: [1, 2]\n"
        "    teacher.model: [a, b]\n"
        "    student.layers: [1, 2]\n"
        "    student.training.seed: [1, 2]\n"
        "    student.training.learning_rat: [1, 2]\n",
        [
            "9: sweep.keys.data.max_tokens: cannot be swept: trials share the data, the model",
            "10: sweep.keys.teacher.model: cannot be swept: trials share",
            "11: sweep.keys.student.layers: cannot be swept: trials share",
            "12: sweep.keys.student.training.seed: cannot be swept; of training, these can: learning_rate,",
            "13: sweep.keys.student.training.learning_rat: cannot be swept; did you mean learning_rate?",
        ],
    ),
    "a search over values that the recipe may not have": (
        GOOD + "sweep:\n  keys:\n"
        "    student.loss.temperature: [1, 0, {start: 4, end: 1}]\n"
        "    student.loss.soft_weight: {low: 0.5, high: 1.5}\n"
        "    student.loss.temprature: [1, 2]\n"
        "    student.training.per_device_train_batch_size: {low: 8.0, high: 16.0}\n"
        "    student.training.lr_scheduler_type: [linear, cosin]\n",
        [
            "9: sweep.keys.student.loss.temperature.1: wants a temperature above 0, got 0.0",
            "10: sweep.keys.student.loss.soft_weight.high: wants a share from 0 to 1, got 1.5",
            "11: sweep.keys.student.loss.temprature: unknown key; did you mean temperature?",
            "12: sweep.keys.student.training.per_device_train_batch_size.low: wants int, got 8.0",
            "12: sweep.keys.student.training.per_device_train_batch_size.high: wants int, got 16.0",
            "13: sweep.keys.student.training.lr_scheduler_type.1: got 'cosin'; did you mean cosine?",
        ],
    ),
    "a search over two stages": (
        GOOD + "sweep: {keys: {student.loss.temperature: [1, 2], teacher.attention_dropout: [0.0, 0.1]}}\n",
        ["7: sweep: wants keys of one stage, teacher or student, got student.loss.temperature, teacher.attention"],
    ),
    "a search over a stage that is not there": (
        "data: {dataset: a/b}\nteacher: {model: x}\nsweep: {keys: {student.loss.temperature: [1, 2]}}\n",
        ["sweep.keys: belong to the student, but the recipe has no student"],
    ),
    "an anchor that is not there": (GOOD + "  output: *nowhere\n", ["7: found undefined alias"]),
}


TRAINING = {
    "learning_rate: -1": "wants 0 or more, got -1",
    "learning_rate: .nan": "wants a number, got nan",
    "learning_rate: .inf": "wants a number, got inf",
    "num_train_epochs: 0": "wants a number above 0, got 0",
    "num_train_epochs: -1": "wants a number above 0",
    "max_steps: 0": "wants a number above 0, or -1",
    "max_steps: -5": "wants a number above 0, or -1",
    "per_device_train_batch_size: 0": "wants a number above 0, got 0",
    "per_device_eval_batch_size: 0": "wants a number above 0",
    "gradient_accumulation_steps: 0": "wants a number above 0",
    "seed: -1": "wants 0 or more",
    "dataloader_num_workers: -1": "wants 0 or more",
    "weight_decay: -0.1": "wants 0 or more",
    "warmup_steps: -2": "wants 0 or more",
    "label_smoothing_factor: 7": "wants a share from 0 to below 1, got 7",
    "adam_beta1: 5": "wants a share from 0",
    "adam_epsilon: 0": "wants a number above 0",
    "logging_steps: 0": "wants a number above 0",
    "save_total_limit: -1": "wants 0 or more",
    "logging_nan_inf_filter: true": "set by distill",
    "eval_do_concat_batches: false": "set by distill",
    "restore_callback_states_from_checkpoint: true": "set by distill",
    "debug: underflow_overflow": "not supported; distill stops if a loss, logits or weights are not numbers",
    "parallelism_config: {}": "not supported; fsdp: true",
    "per_device_eval_batch_size: 10000000000000": "wants a number no larger than 1048576, got 10000000000000",
    "per_device_train_batch_size: 10000000000000": "wants a number no larger than 1048576",
    "gradient_accumulation_steps: 10000000000": "wants a number no larger than 2147483647",
    f"learning_rate: {10**400}": "wants a number no larger than 2147483647, got 1000",
    "num_train_epochs: 1.0e+308": "wants a number no larger than 2147483647, got 1e+308",
    "max_steps: 10000000000000": "wants a number no larger than",
    "seed: 10000000000000": "wants a number no larger than 4294967295",
    "data_seed: 10000000000000": "wants a number no larger than 4294967295",
    "eval_accumulation_steps: 0": "wants a number above 0",
    "torch_empty_cache_steps: 0": "wants a number above 0",
    "ddp_bucket_cap_mb: 0": "wants a number above 0",
    "ddp_timeout: -1": "wants a number above 0",
    "neftune_noise_alpha: -1": "wants 0 or more",
    "adam_beta1: 0": "wants a fraction: write 0.0",
    "log_level: foo": "wants one of detail, debug, info, warning, error, critical, passive, got 'foo'",
    "log_level_replica: ''": "wants one of detail, debug",
    "torch_compile_backend: os": "wants one of inductor, eager, aot_eager, cudagraphs, got 'os'",
    "torch_compile_mode: foo": "wants one of default, reduce-overhead, max-autotune",
    "include_num_input_tokens_seen: foo": "wants one of true, false, all, non_padding, no, got 'foo'",
    "train_sampling_strategy: foo": "wants one of random, sequential",
    "ddp_backend: 'cuda:foo,cpu:gloo'": "wants one of nccl, gloo",
    "optim_args: foo": "wants KEY=VALUE, or several of them with commas between, got 'foo'",
    "accelerator_config: /etc/passwd": "wants a mapping, got '/etc/passwd'",
    "lr_scheduler_kwargs: foo": "wants a mapping, got 'foo'",
    "activation_checkpointing_kwargs: foo": "wants a mapping, got 'foo'",
    "liger_kernel_config: foo": "wants a mapping, got 'foo'",
    "lr_scheduler_kwargs: {foo: 1}": "foo is not a setting of the schedule linear; it has none",
    "lr_scheduler_type: warmup_stable_decay": "warmup_stable_decay wants lr_scheduler_kwargs: {num_decay_steps: ...}",
}
# Fields that are mappings, some with other fields, and what is wrong with each.
OF_MAPPINGS = {
    "accelerator_config: {foo: 1}": "accelerator_config.foo: not a key here; one of split_batches,",
    "accelerator_config: {split_batches: 1}": "accelerator_config.split_batches: wants one of true, false, got 1",
    "activation_checkpointing_kwargs: {use_rentrant: true}": (
        "activation_checkpointing_kwargs.use_rentrant: not a key here; did you mean use_reentrant?"
    ),
    "gradient_checkpointing_kwargs: {use_reentrant: 5}": "gradient_checkpointing_kwargs.use_reentrant: wants one of tr",
    "lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycle: 2}": (
        "lr_scheduler_kwargs: num_cycle is not a setting of the schedule cosine; one of num_cycles"
    ),
    "lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycles: []}": (
        "lr_scheduler_kwargs: got {'num_cycles': []}, but cosine fails with it: float() argument must be"
    ),
    "lr_scheduler_type: reduce_lr_on_plateau, lr_scheduler_kwargs: {foo: 2}": (
        "lr_scheduler_kwargs: foo is not a setting of the schedule reduce_lr_on_plateau; one of mode, factor,"
    ),
    "lr_scheduler_type: cosine_with_min_lr": "lr_scheduler_kwargs: got {}, but cosine_with_min_lr fails with it",
}
CASES |= {
    f"mapping {setting}": (GOOD + f"  training: {{{setting}}}\n", [f"7: student.training.{expected}"])
    for setting, expected in OF_MAPPINGS.items()
}
CASES |= {
    setting: (GOOD + f"  training: {{{setting}}}\n", [f"7: student.training.{setting.split(':')[0]}: {expected}"])
    for setting, expected in TRAINING.items()
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_in_a_recipe_is_one_line_with_its_place(name, tmp_path, record_property):
    text, expected = CASES[name]
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    check_refused(tmp_path, [f"{path}:{start}" if start[:1].isdigit() else start for start in expected], "check", path)
    record_property("bad recipes", 1)


def test_a_recipe_that_is_not_there_or_no_recipe_at_all(tmp_path):
    (tmp_path / "big.yaml").write_bytes(b"#" * 2_000_000)
    for path, expected in (
        ("none.yaml", "No such file"), (".", "Is a directory"), ("big.yaml", "larger than"),
    ):  # fmt: skip
        check_refused(tmp_path, [expected], "check", tmp_path / path)


SETS = {
    "student.layers": "--set student.layers: wants dotted.key=value",
    "=1": "--set =1: wants dotted.key=value",
    "data..seed=1": "wants dotted.key=value",
    "teacher.model.x=1": "--set teacher.model.x=1: model is not a section",
    "data.seed=x": "--set data.seed=x: data.seed: input should be a valid integer, got 'x'",
    "data.seed=&a [*a]": "--set data.seed=&a [*a]: nested too deeply",
    "teacher.training.hub_token=hf_x": "--set teacher.training.hub_token: teacher.training.hub_token: not supported",
    "data.seed=" + 2_000 * "[": "nested too deeply",
    "data.seed=" + 200 * "[" + 200 * "]": "nested too deeply",
    'teacher.model="\\ud800"': "half a surrogate pair",
    ".".join(500 * ["a"]) + "=1": "nested too deeply",
    "data.seed={": "is not a YAML value",
    "data.seed=\0": "is not a YAML value",
    "sweep.keys.student.loss.temperature=[0, 1]": "[0, 1]: sweep.keys.student.loss.temperature.0: wants a temperature",
    "sweep.keys.student.loss.temperature.low=1": "sweep.keys.student.loss.temperature.low: wants a list of values, or",
}


@pytest.mark.parametrize("override", SETS, ids=lambda text: ascii(text[:20]))
def test_a_mistake_on_the_command_line_names_the_option(override, tmp_path, record_property):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    check_refused(tmp_path, [SETS[override]], "check", path, "--set", override)
    record_property("bad recipes", 1)
