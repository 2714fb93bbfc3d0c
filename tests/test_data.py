import csv
import json
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BAD, FILLER, GOOD, LABELS, make_tokenizer, write_reviews
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.data.encoding import Truncation, vocabulary_of
from distill.data.splits import load_splits
from distill.data.texts import read_texts
from distill.errors import DataError
from distill.recipe.schema import Data, Files
from distill.training.tokens import check_embedded, check_tokenised, tokenise


def data(train, test, **settings):
    return Data(files=Files(train=str(train), test=str(test)), **settings)


def write(path, rows, columns=("text", "label")):
    """Rows to a file of the kind that its suffix says."""
    table = {name: [row[index] for row in rows] for index, name in enumerate(columns)}
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.table(table).schema) as writer:
            writer.write_table(pa.table(table))
    return path


def rows_of(count, labels=(0, 1), word="text"):
    return [(f'{word} "{index}", said\nNA', labels[index % len(labels)]) for index in range(count)]


def other(file):
    """A file beside `file` with the same labels and other texts, so that nothing leaks from one to the other."""
    rows = (datasets.Dataset.from_csv if file.suffix == ".csv" else datasets.Dataset.from_parquet)(str(file))
    rows = rows.map(lambda row: {"text": f"other {row['text']}"})
    (rows.to_csv if file.suffix == ".csv" else rows.to_parquet)(file.with_stem(f"{file.stem}_other"))
    return file.with_stem(f"{file.stem}_other")


def test_without_a_test_file_a_part_of_train_is_the_test_split(tmp_path):
    file = write(tmp_path / "a.csv", [*rows_of(200), *rows_of(10)])  # ten texts are there twice
    splits = load_splits(Data(files=Files(train=str(file)), test_fraction=0.25))
    parts = {name: set(getattr(splits, name)["text"][:]) for name in ("train", "validation", "test")}
    assert len(splits.test) == 52 and Counter(splits.test["label"][:]) == {0: 26, 1: 26}
    assert not parts["test"] & (parts["train"] | parts["validation"]) and not parts["train"] & parts["validation"]
    assert len(parts["train"] | parts["validation"] | parts["test"]) == 200
    again = load_splits(Data(files=Files(train=str(file)), test_fraction=0.25, train_samples=60))
    assert again.test["text"][:] == splits.test["text"][:]  # whatever else changes
    assert any("are the test split" in note for note in splits.notes)


def test_a_map_renames_labels_and_joins_classes(tmp_path):
    stars = ["1 star", "2 stars", "3 stars", "4 stars"]
    file = write(tmp_path / "a.csv", rows_of(40, labels=stars))
    label_map = {"1 Star": "bad", "2 stars": "bad", "4 stars": "good"}
    splits = load_splits(data(file, other(file), label_map=label_map))
    assert splits.label_names == ("3 stars", "bad", "good")
    assert [splits.label_names[label] for label in splits.test["label"][:4]] == ["bad", "bad", "3 stars", "good"]
    typed = datasets.Dataset.from_dict(
        {"text": [f"text {index}" for index in range(40)], "label": [index % 4 for index in range(40)]},
        features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=stars)}),
    )
    typed.to_parquet(tmp_path / "b.parquet")
    splits = load_splits(data(tmp_path / "b.parquet", other(tmp_path / "b.parquet"), label_map=label_map))
    assert splits.label_names == ("bad", "3 stars", "good")
    assert [splits.label_names[label] for label in splits.test["label"][:4]] == ["bad", "bad", "3 stars", "good"]


def test_a_map_may_swap_names_whatever_their_type(tmp_path):
    swap, names = {"neg": "pos", "pos": "neg"}, ("neg", "pos")
    typed = datasets.Dataset.from_dict(
        {"text": [f"text {index}" for index in range(40)], "label": [index % 2 for index in range(40)]},
        features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}),
    )
    typed.to_parquet(tmp_path / "a.parquet")
    files = [tmp_path / "a.parquet", write(tmp_path / "b.csv", rows_of(40, labels=names))]
    for file in files:
        splits = load_splits(data(file, other(file), label_names=names, label_map=swap))
        assert [splits.label_names[label] for label in splits.test["label"][:2]] == ["pos", "neg"]


def test_a_map_of_numbers_matches_them_however_they_are_written(tmp_path):
    file = write(tmp_path / "a.csv", rows_of(40, labels=("0.0", "1.0")))
    settings = {"label_names": ("bad", "good"), "label_map": {"0": "good", "1": "bad"}}
    splits = load_splits(data(file, other(file), **settings))
    assert [splits.label_names[label] for label in splits.test["label"][:2]] == ["good", "bad"]
    splits = load_splits(data(file, other(file), label_map={"0": "good", "5": "bad"}))
    assert any("no label of the files becomes 'bad'; is '5' what they have?" in note for note in splits.notes)


def test_a_carved_test_split_shares_no_text_with_a_given_validation_file(tmp_path):
    rows = rows_of(100)
    train, validation = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", rows[:40])
    splits = load_splits(Data(files=Files(train=str(train), validation=str(validation)), test_fraction=0.2))
    assert not set(splits.test["text"][:]) & set(splits.validation["text"][:])
    with pytest.raises(DataError, match="does not make stratified train and test splits"):
        load_splits(Data(files=Files(train=str(train)), test_fraction=0.99))
    rare = write(tmp_path / "c.csv", [*rows_of(400, labels=("a",)), *rows_of(4, labels=("b",), word="rare")])
    splits = load_splits(Data(files=Files(train=str(rare))))
    assert any("test: has no text of b" in note for note in splits.notes)


def test_a_sample_of_transfer_texts_is_drawn_from_those_that_are_not_in_train(tmp_path):
    train = write(tmp_path / "a.csv", rows_of(40))
    transfer = write(tmp_path / "b.csv", [*rows_of(40), *rows_of(5, word="new")])
    files = Files(train=str(train), test=str(other(train)), transfer=str(transfer))
    assert len(load_splits(Data(files=files, transfer_samples=5)).transfer) == 5


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    rows = rows_of(40, word="test")
    splits = load_splits(data(write(tmp_path / f"a{suffix}", rows_of(40)), write(tmp_path / f"b{suffix}", rows)))
    assert splits.test["text"] == [text for text, _ in rows]
    assert splits.test["label"] == [label for _, label in rows]
    assert splits.label_names == ("0", "1")


@pytest.mark.parametrize(
    ("labels", "names", "expected_names"),
    [
        ((0, 1), None, ("0", "1")),
        ((0, 1), ("bad", "good"), ("bad", "good")),
        ((1, 5), None, ("1", "5")),  # stars: any whole numbers are names
        ((1, 5), ("1", "5"), ("1", "5")),
        (("bad", "good"), None, ("bad", "good")),
        (("bad", "good"), ("good", "bad"), ("good", "bad")),
        ((False, True), None, ("false", "true")),
        ((False, True), ("TRUE", "False"), ("TRUE", "False")),
        ((0.0, 1.0), None, ("0", "1")),
    ],
)
def test_labels_of_any_kind_become_indices_of_names(tmp_path, labels, names, expected_names):
    file = write(tmp_path / "a.parquet", rows_of(40, labels))
    splits = load_splits(data(file, other(file), label_names=names))
    assert splits.label_names == expected_names
    meaning = [splits.label_names[label] for label in splits.test["label"][:2]]
    if labels == ("bad", "good") or names is None:
        assert meaning == [str(label).lower().removesuffix(".0") for label in labels]
    if names == ("TRUE", "False"):
        assert meaning == ["False", "TRUE"]
    assert set(splits.test["label"]) == {0, 1}


def class_labels(path, names, labels):
    """A file whose label column knows its class names, as Hub data sets do."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"{path.stem} {index}" for index in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_class_names_of_the_data_go_by_name_and_are_not_taken_for_numbers(tmp_path):
    names = ["0", "1", "10", "2"]  # sorted as text: the stored index 3 means "2"
    file = class_labels(tmp_path / "a.parquet", names, [0, 1, 2, 3] * 10)
    splits = load_splits(data(file, other(file)))
    assert [splits.label_names[label] for label in splits.test["label"][:4]] == names


@pytest.mark.parametrize("names", [("negative", "positive"), ("pos", "neg"), ("neg", "pos")])
def test_the_recipes_names_reorder_or_rename_those_of_the_data(tmp_path, names):
    train = class_labels(tmp_path / "a.parquet", ["neg", "pos"], [0, 1] * 20)
    test = class_labels(tmp_path / "b.parquet", ["pos", "neg"], [0, 1] * 20)
    splits = load_splits(data(train, test if set(names) == {"neg", "pos"} else other(train), label_names=names))
    meaning = [splits.label_names[label][:3] for label in splits.test["label"][:2]]
    assert meaning == (["pos", "neg"] if set(names) == {"neg", "pos"} else ["neg", "pos"])


def test_what_a_number_means_is_decided_by_train_for_every_split(tmp_path):
    train = write(tmp_path / "a.csv", rows_of(60, (0, 1, 2)))
    test = write(tmp_path / "b.csv", rows_of(60, (1, 2), "test"))
    splits = load_splits(data(train, test, label_names=("x", "y", "z")))
    assert splits.test["label"][:2] == [1, 2]


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("1", "2", "3"), (0, 1, 2), "label '0' is not one of 3 classes: 1, 2, 3"),
        (("1", "2"), (0, 1), "label '0' is not one of 2 classes: 1, 2"),
        (("1.0", "0.0"), (0, 1), ["0.0", "1.0"]),
        (("01", "00"), (0, 1), ["00", "01"]),
        (("5", "1"), (1, 5), ["1", "5"]),
    ],
)
def test_labels_are_no_indices_into_names_that_are_numbers(tmp_path, names, labels, expected):
    files = [write(tmp_path / f"{word}.csv", rows_of(60, labels, word)) for word in ("train", "test")]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            load_splits(data(*files, label_names=names))
        return
    splits = load_splits(data(*files, label_names=names))
    assert [splits.label_names[label] for label in splits.test["label"][:2]] == expected


def test_a_class_that_train_lacks_is_refused(tmp_path):
    files = [write(tmp_path / f"{word}.csv", rows_of(60, ("x", "y"), word)) for word in ("train", "test")]
    with pytest.raises(DataError, match="no training text of class 'z'; take more rows or drop it"):
        load_splits(data(*files, label_names=("x", "y", "z")))


def test_names_that_share_some_with_the_datas_own_go_by_name(tmp_path):
    file = class_labels(tmp_path / "a.parquet", ["negative", "neutral", "positive"], [0, 1, 2] * 20)
    with pytest.raises(DataError, match="label 'neutral' is not one of 3 classes: positive, negative, mixed"):
        load_splits(data(file, other(file), label_names=("positive", "negative", "mixed")))


def test_integers_of_a_split_whose_type_names_no_classes_are_those_of_train(tmp_path):
    train = class_labels(tmp_path / "a.parquet", ["neg", "pos"], [0, 1] * 20)
    test = write(tmp_path / "b.parquet", rows_of(20, (0, 1), "test"))
    splits = load_splits(data(train, test))
    assert splits.label_names == ("neg", "pos") and splits.test["label"][:2] == [0, 1]


def test_class_names_of_the_data_may_differ_in_case(tmp_path):
    file = class_labels(tmp_path / "a.parquet", ["a", "A"], [0, 1] * 20)
    splits = load_splits(data(file, other(file)))
    assert splits.label_names == ("a", "A") and splits.test["label"][:2] == [0, 1]


def test_minus_one_means_no_label_and_is_refused(tmp_path):
    file = class_labels(tmp_path / "a.parquet", ["neg", "pos"], [0, 1] * 20 + [-1])
    with pytest.raises(DataError, match="row 40: label '-1' is not one of 2 classes"):
        load_splits(data(file, other(file)))


def test_validation_is_carved_out_of_train_stratified_and_seeded(tmp_path):
    rows = [(f"text {index}", "rare" if index % 10 == 0 else "common") for index in range(200)]
    file = write(tmp_path / "a.csv", rows)
    first, again = (load_splits(data(file, other(file), validation_fraction=0.2)) for _ in range(2))
    assert Counter(first.validation["label"]) == {0: 36, 1: 4}
    assert first.validation["example_id"] == again.validation["example_id"]
    assert set(first.validation["example_id"]).isdisjoint(first.train["example_id"])
    assert len(first.train) + len(first.validation) == 200
    reseeded = load_splits(data(file, other(file), validation_fraction=0.2, seed=1))
    assert reseeded.validation["example_id"] != first.validation["example_id"]


def test_samples_are_the_first_n_after_a_seeded_shuffle(tmp_path):
    file = write(tmp_path / "a.csv", rows_of(100))
    whole, few, more = (
        load_splits(data(file, other(file), test_samples=samples)).test["example_id"] for samples in (100, 10, 30)
    )
    assert few == whole[:10] and more == whole[:30]
    assert few != [f"test/{index}" for index in range(10)]


def test_an_example_id_names_the_row_of_the_file(tmp_path):
    rows = rows_of(60)
    file = write(tmp_path / "a.csv", rows)
    splits = load_splits(data(file, other(file), train_samples=30))
    for row in splits.train:
        assert rows[int(row["example_id"].split("/")[1])][0] == row["text"]


def test_train_samples_are_all_the_labelled_text_a_run_sees(tmp_path):
    file = write(tmp_path / "a.csv", rows_of(100))
    splits = load_splits(data(file, other(file), train_samples=50))
    assert (len(splits.train), len(splits.validation)) == (45, 5)


def test_a_local_folder_stands_in_for_a_hub_data_set(tmp_path):
    for split in ("train", "test", "validation"):
        write(tmp_path / f"{split}.csv", rows_of(40, word=split))
    splits = load_splits(Data(dataset=str(tmp_path)))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 40, 40)


def test_a_text_of_validation_or_test_is_dropped_from_train_and_transfer(tmp_path):
    train = write(tmp_path / "train.csv", [*rows_of(40), ("  A Fine\tfilm", 0), ("seen while choosing", 1)])
    validation = write(tmp_path / "validation.csv", [*rows_of(10, word="validation"), ("Seen while  choosing", 1)])
    test = write(tmp_path / "test.csv", [*rows_of(40, word="test"), ("a fine FILM ", 0)])
    texts = [("a fine film",), ("A FINE film",), ("seen while choosing",), ("new",), ("newer",)]
    transfer = write(tmp_path / "transfer.csv", texts, ("text",))
    files = Files(train=str(train), validation=str(validation), test=str(test), transfer=str(transfer))
    splits = load_splits(Data(files=files))
    assert splits.leaks == {"train": 2, "transfer": 3}
    assert splits.train["text"] == [text for text, _ in rows_of(40)]
    assert splits.transfer["text"] == ["new", "newer"]
    assert splits.transfer["example_id"] == ["transfer/3", "transfer/4"]
    assert len(splits.validation) == 11 and len(splits.test) == 41


def test_a_text_that_stands_twice_is_not_in_train_and_in_the_validation_carved_from_it(tmp_path):
    rows = rows_of(40)
    file = write(tmp_path / "a.csv", rows * 2)
    splits = load_splits(data(file, other(file), validation_fraction=0.25))
    assert set(splits.train["text"]).isdisjoint(splits.validation["text"])
    assert splits.leaks["train"] == 80 - len(splits.validation) - len(splits.train) > 0


def test_leaks_are_dropped_before_samples_are_taken(tmp_path):
    test = write(tmp_path / "b.csv", rows_of(30))
    splits = load_splits(data(write(tmp_path / "a.csv", rows_of(60)), test, train_samples=30))
    assert len(splits.train) + len(splits.validation) == 30
    with pytest.raises(DataError, match="every train text is also in validation or test"):
        load_splits(data(test, test))


def test_a_transfer_set_needs_no_label_column_and_has_no_labels(tmp_path):
    labelled = write(tmp_path / "a.csv", rows_of(40))
    with_labels = write(tmp_path / "c.csv", [("one", "no class of ours"), ("two", "")])
    files = Files(train=str(labelled), test=str(other(labelled)), transfer=str(with_labels))
    splits = load_splits(Data(files=files, transfer_samples=1))
    assert splits.transfer.column_names == ["text", "example_id"] and len(splits.transfer) == 1
    tokenised = tokenise(splits.transfer, make_tokenizer(["one", "two"]), Truncation(8))
    assert tokenised["labels"] == [-1]
    assert "transfer" in splits.fingerprints


def test_fingerprints_follow_the_content(tmp_path):
    def fingerprints(suffix, labels=(0, 1)):
        train, test = (write(tmp_path / f"{word}{suffix}", rows_of(60, labels, word)) for word in ("train", "test"))
        return load_splits(data(train, test)).fingerprints

    assert fingerprints(".csv") == fingerprints(".jsonl")
    assert fingerprints(".csv")["test"] != fingerprints(".csv", (1, 0))["test"]


@pytest.fixture
def rows(tmp_path):
    write_reviews(tmp_path / "a.csv", 80, seed=3)
    write_reviews(tmp_path / "b.csv", 8, seed=4)
    return load_splits(data(tmp_path / "a.csv", tmp_path / "b.csv", label_names=tuple(LABELS))).train


def test_tokens_masks_lengths_and_labels_agree(rows):
    tokenizer = make_tokenizer(FILLER + GOOD + BAD)
    tokenised = tokenise(rows, tokenizer, Truncation(12))
    check_tokenised(rows, tokenised, tokenizer)
    assert tokenised["labels"] == rows["label"]
    assert max(tokenised["length"]) == 12 and min(tokenised["length"]) < 12
    assert [len(ids) for ids in tokenised["input_ids"]] == tokenised["length"]


def test_tokenising_twice_reads_the_cache_even_with_another_tokenizer_object(rows):
    calls = []
    tokenise(rows, make_tokenizer(FILLER + GOOD + BAD), Truncation(16), progress=calls.append)
    first = sum(calls)
    tokenise(rows, make_tokenizer(FILLER + GOOD + BAD), Truncation(16), progress=calls.append)
    assert first == len(rows) and sum(calls) == first
    tokenise(rows, make_tokenizer(FILLER + GOOD + BAD + ["more"]), Truncation(16), progress=calls.append)
    assert sum(calls) == 2 * first


def test_cutting_on_the_other_side_is_not_answered_from_the_cache(rows):
    tokenizer = make_tokenizer(FILLER + GOOD + BAD)
    head = tokenise(rows, tokenizer, Truncation(6))["input_ids"]
    assert tokenise(rows, tokenizer, Truncation(6, "tail"))["input_ids"] != head


def test_a_text_may_hold_special_tokens(rows):
    tokenizer = make_tokenizer(FILLER + GOOD + BAD)
    special = rows.map(lambda row: {"text": f"the [SEP] film {row['text']}"})
    check_tokenised(special, tokenise(special, tokenizer, Truncation(64)), tokenizer)


def test_a_tokenizer_for_other_texts_is_refused(rows):
    stranger = make_tokenizer(["bonjour", "monde"])
    with pytest.raises(DataError, match="100% of the words are unknown: the tokenizer was made for other texts"):
        check_tokenised(rows, tokenise(rows, stranger, Truncation(16)), stranger)


def test_a_tokenizer_of_pieces_for_another_script_is_refused(rows):
    """It knows the mark of a word's beginning and the full stop, so most of its tokens are known."""
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581", -1.0), (".", -2.0), ("\u2581.", -2.0)], unk_id=0))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    stranger = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>", pad_token="<unk>")
    texts = rows.map(lambda row: {"text": row["text"].replace(" ", " . ")})
    tokenised = tokenise(texts, stranger, Truncation(64))
    unknown = sum(ids.count(0) for ids in tokenised["input_ids"]) / sum(tokenised["length"])
    assert unknown < 0.4
    with pytest.raises(DataError, match="of the words are unknown: the tokenizer was made for other texts"):
        check_tokenised(texts, tokenised, stranger)


def test_tokens_beyond_the_models_table_matter_only_if_a_text_has_one(rows):
    tokenizer = make_tokenizer(FILLER + GOOD + BAD)
    embeddings = vocabulary_of(tokenizer)
    tokenizer.add_tokens(["<beyond>"])
    assert vocabulary_of(tokenizer) == embeddings + 1
    assert vocabulary_of(tokenizer, added=False) == embeddings
    check_embedded(tokenise(rows, tokenizer, Truncation(32)), tokenizer, embeddings)
    strange = rows.map(
        lambda row, index: {"text": "the <beyond> film" if index == 7 else row["text"]}, with_indices=True
    )
    with pytest.raises(
        DataError, match=r"a text has the token '<beyond>' .id 29., but the model embeds only 29 tokens"
    ):
        check_embedded(tokenise(strange, tokenizer, Truncation(32)), tokenizer, embeddings)


def test_labels_that_slipped_are_found(rows):
    tokenizer = make_tokenizer(FILLER + GOOD + BAD)
    tokenised = tokenise(rows, tokenizer, Truncation(32))
    slipped = tokenised.remove_columns("labels").add_column("labels", [1 - label for label in tokenised["labels"]])
    with pytest.raises(DataError, match="ids, mask and label disagree"):
        check_tokenised(rows, slipped, tokenizer)


def test_a_tokenizer_that_means_other_words_by_the_same_ids_is_found(rows):
    tokenizer, other = make_tokenizer(FILLER + GOOD + BAD), make_tokenizer(BAD + GOOD + FILLER)
    with pytest.raises(DataError, match="decoding the tokens does not give the text"):
        check_tokenised(rows, tokenise(rows, other, Truncation(64)), tokenizer)


def test_texts_are_read_from_any_file_in_order(tmp_path):
    rows = rows_of(2_500)
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert list(read_texts(str(write(tmp_path / f"a{suffix}", rows)), "text")) == [text for text, _ in rows]
    (tmp_path / "a.txt").write_text("one\n\nthree\r\n")
    assert list(read_texts(str(tmp_path / "a.txt"), "text")) == ["one", "", "three"]
    with pytest.raises(DataError, match="no column 'review'"):
        list(read_texts(str(tmp_path / "a.csv"), "review"))
