#!/usr/bin/env python3
"""Make smollm2/: the vocabulary of SmolLM2 and what Python `tokenizers` encodes with it.

    python make.py SmolLM2-135M-Instruct.Q4_1.gguf

needs the packages gguf and tokenizers. The strings are drawn from a fixed seed.
    vocab.json.gz    the GGUF metadata: pre, tokens, types, merges, bos, eos, pad
    encode.jsonl.gz  {"cat", "text", "ids"}; "ids_special" where special tokens are
                     recognised too and that differs; "decoded" where not text
    nfc.jsonl.gz     {"text", "nfc"}: the normalizer NFC, on long combining runs above
                     all. Its tables are older than Python's, which differ in marks
                     added since; only texts on which both agree are kept.
"""
import gzip
import json
import pathlib
import random
import sys
import unicodedata

import tokenizers
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).parent / "smollm2"
rng = random.Random(20250207)


def write(name, lines):
    data = "".join(json.dumps(x, ensure_ascii=True, separators=(",", ":")) + "\n" for x in lines)
    (HERE / name).write_bytes(gzip.compress(data.encode(), 9, mtime=0))


def read_vocab(path):
    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    return {
        "pre": get("pre"),
        "bos": get("bos_token_id"),
        "eos": get("eos_token_id"),
        "pad": get("padding_token_id"),
        "types": get("token_type"),
        "tokens": get("tokens"),
        "merges": get("merges"),
    }


def build(vocab):
    control = [t for t, kind in zip(vocab["tokens"], vocab["types"]) if kind == 3]
    merges = [tuple(m.split(" ")) for m in vocab["merges"]]
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(vocab["tokens"])}, merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return tok, control


SENTENCES = {
    "en": "The quick brown fox doesn't jump; it'll walk, won't it? We've seen 3 of them (in 2023) -- I'm sure they're fine. She'd said 'so'.",
    "zh": "你好,世界!我是一个大语言模型,可以回答问题、写代码。你能联网吗?今天是2025年4月5日。",
    "ja": "こんにちは、世界。私は言語モデルです。カタカナとひらがなを使います。東京は3月です。",
    "ko": "안녕하세요, 세계! 저는 언어 모델입니다. 한국어를 이해합니다.",
    "ru": "Привет, мир! Я языковая модель, и я отвечаю на вопросы.",
    "ar": "مرحبا بالعالم! أنا نموذج لغوي، أجيب عن الأسئلة. ١٢٣٤",
    "hi": "नमस्ते दुनिया! मैं एक भाषा मॉडल हूँ। १२३ प्रश्न।",
    "th": "สวัสดีชาวโลก ฉันเป็นแบบจำลองภาษา ๑๒๓",
    "eu": "Ça va? Größe, naïve façade; el niño comió. Zażółć gęślą jaźń. Ðþæ œuvre Ångström",
    "vi": "Xin chào thế giới! Tôi là mô hình ngôn ngữ. Tie\u0302\u0301ng Vie\u0323\u0302t",
    "code": "def f(x, y=10):\n\tif x >= 0x1F and y != 3.14e-5:\n\t\treturn {'a': [1, 2], \"b\": None}\n\n\nfor (int i = 0; i < n; ++i) { a[i] += b[i] * 2; } // done\n    </div>\r\n<p class=\"x\">&nbsp;</p>\n",
    "emoji": "👍🏽👨‍👩‍👧‍👦🇩🇪❤️ ok 🙂🙃 1️⃣ ☃ 𝕳𝖊𝖑𝖑𝖔 🤖!",
}
PUNCT = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
SPACES = " \t\n\r\v\f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"


def scalar():
    while True:
        c = rng.choice([rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0x10000), rng.randrange(0x110000)])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def of(alphabet, lo, hi):
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(lo, hi)))


def samples(control):
    yield "edge", ""
    for b in range(128):
        yield "ascii", chr(b)
        yield "ascii", "a" + chr(b) + "b " + chr(b) + "\n"
    for cat, text in SENTENCES.items():
        yield cat, text
        for _ in range(120):
            i = rng.randrange(len(text))
            yield cat, text[i : i + rng.randint(1, 40)]
    everything = list(SENTENCES.values())
    for _ in range(400):
        yield "mixed", "".join(rng.choice([of(SPACES, 0, 2), "", ""]) + t[i : i + rng.randint(1, 9)]
                               for t in rng.choices(everything, k=6) for i in [rng.randrange(len(t))])
    for _ in range(300):
        yield "digits", of("0123456789", 1, 8) + of(" .,٣²½Ⅷ一१", 0, 3) + of("0123456789a '", 0, 8)
    for _ in range(400):
        yield "whitespace", of(SPACES + "   \n\n", 1, 9) + of("a1.é你'", 0, 2) + of(" \n\t", 0, 5) + of("a1.", 0, 1)
    for _ in range(300):
        yield "contraction", of("a I1.", 0, 1) + rng.choice(["'", "'", "’", " '"]) + of("stmdrevlSTMDREVLſ", 1, 3) + of(" a1'", 0, 2)
    for _ in range(300):
        yield "punctuation", of(PUNCT + " ", 1, 12) + of("a1\n", 0, 2)
    for _ in range(600):
        yield "random_unicode", "".join(scalar() for _ in range(rng.randint(1, 12)))
    for _ in range(150):
        yield "combining", of("aeo가각ㄱ", 1, 1) + of("\u0300\u0301\u0323\u0327\u0345\u0344\u1161\u11a8", 1, 50)
    for c in ["a", " ", "7", "\n", "=", "啊", "\u0301", "ab", "👍", "a ", "'s", "\t \n"]:
        for n in [31, 32, 33, 95, 96, 97, 98, 300, 2000]:
            yield "run", c * (n // len(c))
    for _ in range(40):
        yield "long_word", of("abcdefghijklmnopqrstuvwxyz", 90, 400)
    pieces = control + ["<|", "|>", "<", "im_end", "<|im_end", " ", "\n", "user", "a"]
    for _ in range(300):
        yield "special", "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))


def encode(tok, control):
    seen = set()
    for cat, text in samples(control):
        if text in seen:
            continue
        seen.add(text)
        tok.encode_special_tokens = True
        row = {"cat": cat, "text": text, "ids": tok.encode(text, add_special_tokens=False).ids}
        tok.encode_special_tokens = False
        special = tok.encode(text, add_special_tokens=False).ids
        if special != row["ids"]:
            row["ids_special"] = special
        decoded = tok.decode(row["ids"], skip_special_tokens=False)
        if decoded != text:
            row["decoded"] = decoded
        yield row


def combining():
    marks = "\u0300\u0301\u0307\u0323\u0327\u0328\u0338\u0345\u0344\u05b0\u0591\u3099\u1dce\U0001d165"
    bases = ["", "a", "e", "\u1e69", "\u01d5", "\uac00", "\u1100", "\u0b47", "\u226e", "か", "\u212b"]
    jamo = "\u1100\u1161\u11a8\u0301"
    for n in [1, 2, 5, 10, 29, 30, 31, 32, 60, 200]:
        for _ in range(15):
            text = of("x \u00e9", 0, 2) + rng.choice(bases) + of(marks, n, n) + rng.choice(bases) + of("b\u0301", 0, 2)
            yield text
        yield of(jamo, n, n)
    for _ in range(1500):
        yield "".join(scalar() if rng.random() < 0.5 else rng.choice(marks + jamo) for _ in range(rng.randint(1, 20)))


def normalised():
    nfc = normalizers.NFC()
    for text in combining():
        want = nfc.normalize_str(text)
        if want == unicodedata.normalize("NFC", text):
            yield {"text": text, "nfc": want}


def main():
    vocab = read_vocab(sys.argv[1])
    tok, control = build(vocab)
    HERE.mkdir(exist_ok=True)
    write("vocab.json.gz", [vocab])
    rows = list(encode(tok, control))
    write("encode.jsonl.gz", rows)
    forms = list(normalised())
    write("nfc.jsonl.gz", forms)
    print(f"tokenizers {tokenizers.__version__}: {len(rows)} strings, {len(forms)} normal forms")


main()
