"""Tokenizers as they come from others, against sentencepiece, `tokenizers` and transformers themselves."""

import io
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from hw.spec.errors import UserError
from ref_model.chat import Chat
from ref_model.gguf_tokenizer import WORDS
from ref_model.sentencepiece import BYTE, CONTROL, NORMAL, USER_DEFINED
from ref_model.token_kinds import Tokenizer
from ref_model.tokenizer import load_tokenizer
from tests.ref_model.gguf_files import add, finish
from tests.ref_model.transformers_models import PreTrainedTokenizerFast

SCRIPTS = [
    "Hello world, it's we'll I'M they'Re 12345 67",
    "Привет, мир! Ёжик",
    "Καλημέρα κόσμε",
    "مرحبا بالعالم ١٢٣",
    "שלום עולם",
    "नमस्ते दुनिया १२",
    "สวัสดีชาวโลก",
    "你好,世界。日本語のテキスト",
    "안녕하세요 세계",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🦆",
    "e\u0301 é ñ n\u0303 ﬁ ſ 'ſ",
    "  two   spaces\t tabs\n\nlines\r\n end  ",
    "a\u00a0b\u3000c\u200bd",
    "x=1+2; f(y) -> $z^2 ~ |w| <b>",
    "²³½ Ⅷ",
    "",
    " ",
    "\n",
    "a",
    "▁ literal",
    "0",
    "1234567890",
    "ÀÉÎ" * 9,
    "the " * 50,
]
CORPUS = [line for line in SCRIPTS if line.strip()] * 4 + ["the quick brown fox jumps over the lazy dog"] * 20


# --- SentencePiece ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE model with byte fallback, with Llama's settings, trained here."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=made,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
    )
    folder = tmp_path_factory.mktemp("spm")
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return folder / "tokenizer.model"


def spm_gguf(path: Path, model_file: Path, **more: object) -> Path:
    """The same vocabulary as llama.cpp's converter stores it."""
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    count = spm.vocab_size()
    kinds = [
        2 if spm.is_unknown(i) else CONTROL if spm.is_control(i) else BYTE if spm.is_byte(i) else NORMAL
        for i in range(count)
    ]
    writer = gguf.GGUFWriter(path, "llama")
    add(
        writer,
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [spm.id_to_piece(i) for i in range(count)],
            "tokenizer.ggml.scores": [float(spm.get_score(i)) for i in range(count)],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
        | {f"tokenizer.{key}": value for key, value in more.items()},
    )
    finish(writer)
    return path


@pytest.mark.parametrize("stored", ["folder", "gguf"])
def test_scores_give_sentencepieces_own_tokens(tmp_path: Path, model_file: Path, stored: str) -> None:
    ours = load_tokenizer(model_file.parent if stored == "folder" else spm_gguf(tmp_path / "m.gguf", model_file))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for text in [*SCRIPTS, "".join(SCRIPTS), *_random_texts()]:
        assert ours.encode(text) == [1, *theirs.encode(text)], text
        assert ours.encode(text, begin=False) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert (ours.eos_id, ours.end_ids, ours.vocab) == (2, frozenset({2}), theirs.vocab_size())


def _random_texts() -> list[str]:
    print("seed 17")
    generator, letters = np.random.default_rng(17), "".join(SCRIPTS)
    return ["".join(letters[i] for i in generator.integers(0, len(letters), 80)) for _ in range(200)]


def test_special_tokens_are_cut_out_first(tmp_path: Path, model_file: Path) -> None:
    ours = load_tokenizer(spm_gguf(tmp_path / "m.gguf", model_file), image=True)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    image = theirs.vocab_size()
    assert ours.encode("USER: <image>\nWhat?</s>") == [1, *theirs.encode("USER: "), image, *theirs.encode("\nWhat?"), 2]
    assert ours.decode([1, *theirs.encode("a b"), image, 2]) == "a b"


def test_transformers_conversion_agrees(model_file: Path) -> None:
    """The `tokenizers` model that transformers makes of the same scores."""
    from transformers.convert_slow_tokenizer import generate_merges

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    vocab = {theirs.id_to_piece(i): i for i in range(theirs.vocab_size())}
    scores = {theirs.id_to_piece(i): theirs.get_score(i) for i in range(259, theirs.vocab_size())}
    backend = tokenizers.Tokenizer(models.BPE(vocab, generate_merges(vocab, scores), fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ours = load_tokenizer(model_file.parent)
    for text in SCRIPTS:
        if text:
            assert ours.encode(text, begin=False) == backend.encode(text).ids, text


def test_added_tokens_of_a_folder(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_file.read_bytes())
    added = {"420": {"content": "<image>", "special": True}, "421": {"content": "[word]", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "legacy": False}))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a<image>b[word]")[-3:][-1] == 421 and 420 in ours.encode("a<image>b[word]")
    assert ours.decode([420, 421]) == "[word]"
    added["420"]["lstrip"] = True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    _refused(tmp_path, "added token 420")


def _refused(source: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tokenizer(source)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_other_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    for options, words in (
        ({"model_type": "unigram", "normalization_rule_name": "identity"}, "type 1"),
        ({"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"}, "normalises text"),
        (
            {
                "model_type": "bpe",
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "byte_fallback": False,
            },
            "no token for byte 0",
        ),
    ):
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=made,
            minloglevel=2,
            vocab_size=420,
            **({"byte_fallback": True} | options),
        )
        (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
        _refused(tmp_path, words)


def test_damaged_models_end_in_one_line(tmp_path: Path, model_file: Path) -> None:
    print("seed 3")
    whole, generator = np.frombuffer(model_file.read_bytes(), np.uint8), np.random.default_rng(3)
    for _ in range(60):
        damaged = whole.copy()
        damaged[generator.integers(0, len(whole), 5)] = generator.integers(0, 256, 5)
        (tmp_path / "tokenizer.model").write_bytes(damaged[: generator.integers(1, len(whole))].tobytes())
        try:
            load_tokenizer(tmp_path).encode("text")
        except UserError as error:
            assert "\n" not in str(error)


# --- Byte pairs in GGUF ----------------------------------------------------------------------------------

# The tokenizer.json files of the models, by the published expressions.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
ORIGINALS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), _BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3.replace("{1,3}", "")), "isolated"), _BYTES]),
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def trained(name: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    backend.pre_tokenizer = ORIGINALS[name]
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return backend


def bpe_gguf(path: Path, backend: tokenizers.Tokenizer, name: str | None, **more: object) -> Path:
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    specials = ["<|begin|>", "<|eot_id|>", "<|user|>"]
    values = (
        {
            "model": "gpt2",
            "tokens": [*tokens, *specials],
            "merges": [" ".join(merge) for merge in model["merges"]],
            "token_type": [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED],
            "bos_token_id": len(tokens),
        }
        | ({} if name is None else {"pre": name})
        | more
    )
    writer = gguf.GGUFWriter(path, "llama")
    add(writer, {f"tokenizer.ggml.{key}": value for key, value in values.items()})
    finish(writer)
    return path


@pytest.mark.parametrize("name", [*ORIGINALS, *ALIASES])
def test_words_are_cut_as_in_the_original(tmp_path: Path, name: str) -> None:
    theirs = trained(ALIASES.get(name, name))
    if name == "deepseek-r1-qwen":
        theirs.normalizer = normalizers.Sequence([])
    ours = load_tokenizer(bpe_gguf(tmp_path / "m.gguf", theirs, name))
    for text in [*SCRIPTS, *_random_texts()]:
        assert ours.encode(text, begin=False) == theirs.encode(text).ids, text
    assert (ours.encode("x") != ours.encode("x", begin=False)) == ("llama" in name)


def test_a_word_that_is_a_token_is_taken_whole(tmp_path: Path) -> None:
    """Llama 3: although no merges lead to it."""
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "abab": 2, "aa": 3}, [("a", "a")]))
    for name, expected in (("llama-bpe", [2]), ("gpt-2", [0, 1, 0, 1])):
        ours = load_tokenizer(bpe_gguf(tmp_path / f"{name}.gguf", backend, name))
        assert ours.encode("abab", begin=False) == expected


@pytest.mark.parametrize("name", ["default", None])
def test_default_words_are_llama_cpps(tmp_path: Path, name: str | None) -> None:
    """Punctuation apart, GPT-2's words, digits by three: each expression over the pieces of the one before."""
    ours = load_tokenizer(bpe_gguf(tmp_path / "m.gguf", trained("gpt-2"), name))
    cut = [word for word, _ in ours.backend.pre_tokenizer.pre_tokenize_str("it's 12345, ok!! x")]
    assert cut == ["it", "'", "s", "Ġ", "123", "45", ",", "Ġok", "!!", "Ġx"]


def test_ends_and_special_tokens(tmp_path: Path) -> None:
    backend = trained("llama-bpe")
    count = backend.get_vocab_size()
    ours: Tokenizer = load_tokenizer(bpe_gguf(tmp_path / "m.gguf", backend, "llama3", eos_token_id=5, eom_token_id=7))
    assert ours.end_ids == {5, 7, count + 1} and ours.eos_id == 5
    assert ours.encode("<|user|>a<|eot_id|>") == [count, count + 2, *backend.encode("a").ids, count + 1]
    assert ours.decode([count, count + 2, count + 1]) == "<|user|>"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pre": "tekken"}, ("words 'tekken'", "llama-bpe")),
        ({"model": "bert"}, ("tokenizer is 'bert'",)),
        ({"precompiled_charsmap": [1, 2]}, ("precompiled_charsmap is not known",)),
        ({"merges": ["q z"]}, ("merges",)),
        ({"token_type": [1]}, ("token types",)),
        ({"add_eos_token": True}, ("add_eos_token",)),
        ({"bos_token_id": 10**6}, ("bos_token_id is 1000000",)),
        ({"pre": 3}, ("pre is no str",)),
        ({"tokens": [1, 2]}, ("no usable tokenizer.ggml.tokens",)),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, more: dict, words: tuple[str, ...]) -> None:
    _refused(bpe_gguf(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2", **more), *words)
    assert None in WORDS


def test_damaged_gguf_tokenizers_end_in_one_line(tmp_path: Path, model_file: Path) -> None:
    print("seed 5")
    generator = np.random.default_rng(5)
    for path in (spm_gguf(tmp_path / "s.gguf", model_file), bpe_gguf(tmp_path / "b.gguf", trained("gpt-2"), "gpt-2")):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 8)] = generator.integers(0, 256, 8)
            path.write_bytes(damaged[: generator.choice([len(whole), len(whole) // 2])].tobytes())
            try:
                load_tokenizer(path).encode("text <0x41> über")
            except UserError as error:
                assert "\n" not in str(error)


def test_scores_that_are_no_numbers(tmp_path: Path, model_file: Path) -> None:
    count = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).vocab_size()
    _refused(spm_gguf(tmp_path / "m.gguf", model_file, **{"ggml.scores": [float("nan")] * count}), "scores that are no")


# --- Ends and templates of a folder ----------------------------------------------------------------------


def fast(folder: Path, template: str | None) -> PreTrainedTokenizerFast:
    backend = trained("gpt-2")
    backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>"])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(("file", "ends"), [("generation_config.json", [3, 5]), ("config.json", [4]), (None, [])])
def test_every_end_of_a_folder_counts(tmp_path: Path, file: str | None, ends: list[int]) -> None:
    made = fast(tmp_path, None)
    if file is not None:
        (tmp_path / file).write_text(json.dumps({"eos_token_id": ends if len(ends) > 1 else ends[0]}))
    assert load_tokenizer(tmp_path).end_ids == {*ends, made.eos_token_id}
    for junk in ("2", [1, "2"], True, {"a": 1}, -1, 1.5):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": junk}))
        _refused(tmp_path, "eos_token_id")


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{%- for m in messages %}\n    {%- if m.role == 'user' %}\n[INST] {{ m.content | trim }} "
    "[/INST]    {%- endif %}\n{%- endfor %}{% set ns = namespace(x=1) %}{{ messages | tojson }}"
)
LLAVA = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}{% if c.type == 'image' %}"
    "<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize("template", [CHATML, LLAMA])
@pytest.mark.parametrize("prompt", ["What is it?", "Zeige: <b>\"ü\" & 'x'</b> 🦆"])
def test_templates_are_rendered_as_by_transformers(tmp_path: Path, template: str, prompt: str) -> None:
    made = fast(tmp_path, template)
    messages = [{"role": "user", "content": prompt}]
    asked = Chat(tmp_path).question(prompt)
    assert asked == made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = made.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert load_tokenizer(tmp_path).encode(asked, begin=False) == ids
    assert Chat(tmp_path).begins(asked) == (template == LLAMA)


def test_an_image_keeps_its_placeholder(tmp_path: Path) -> None:
    made = fast(tmp_path, LLAVA)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    expected = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Chat(tmp_path).question("<image>\nWhat?", image=True) == expected == "USER: <image>\nWhat? ASSISTANT:"
    assert Chat(tmp_path).question("What?") == "USER: What? ASSISTANT:"
    fast(tmp_path / "b", CHATML)
    assert Chat(tmp_path / "b").question("What?", image=True).count("<image>") == 1
    with pytest.raises(UserError, match="2 times <image>"):
        Chat(tmp_path).question("<image><image>", image=True)


def test_templates_of_every_place(tmp_path: Path) -> None:
    fast(tmp_path, None)
    with pytest.raises(UserError, match="no chat template"):
        Chat(tmp_path)
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "1{{messages[0].content}}"}]
    for file, content in (
        ("tokenizer_config.json", {"chat_template": named}),
        ("chat_template.json", {"chat_template": "2{{messages[0].content}}"}),
    ):
        (tmp_path / file).write_text(json.dumps(content))
        assert Chat(tmp_path).question("q") == f"{'1' if 'tok' in file else '2'}q"
    (tmp_path / "chat_template.jinja").write_bytes("\ufeff3{{messages[0].content}}".encode())
    assert Chat(tmp_path).question("q") == "3q"
    path = bpe_gguf(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2")
    with pytest.raises(UserError, match="no chat template"):
        Chat(path)
    writer = gguf.GGUFWriter(path, "llama")
    add(
        writer,
        {
            "tokenizer.ggml.tokens": ["<s>"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.chat_template": "{{bos_token}}{{messages[0].content}}",
        },
    )
    finish(writer)
    assert Chat(path).question("q") == "<s>q"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no\nway') }}",
        "silence",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 2000000 }}",
    ],
)
def test_templates_that_fail_are_one_line(tmp_path: Path, template: str) -> None:
    fast(tmp_path, None)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError) as caught:
        Chat(tmp_path).question("q")
    assert "\n" not in str(caught.value) and "--chat" in str(caught.value)
