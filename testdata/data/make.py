"""Write masks.jsonl: ids and labels of rows as ms-swift 4 computes them for Qwen2.5.

The rules are written here anew, from reading ms-swift, and by another road than model/data
takes: the conversation becomes strings with control tokens spelled out, neighbours of equal
loss are joined, and the Python library `tokenizers` encodes each string whole.

    python3 make.py QWEN_TOKENIZER_JSON > masks.jsonl
"""

import json
import sys

from tokenizers import Tokenizer

DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SUFFIX = "<|im_end|>\n"

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


def messages_of(row):
    """The row's messages, the system's first if it has one."""
    system = row.get("system", row.get("system_prompt"))
    for key in ("messages", "conversation", "conversations"):
        if key in row:
            out = []
            for m in row[key]:
                if "role" not in m and "from" not in m:
                    out.append({"role": "user", "content": m["human"]})
                    out.append({"role": "assistant", "content": m["assistant"]})
                    continue
                role = m.get("role", m.get("from"))
                out.append({"role": ROLES.get(role, role), "content": m.get("content", m.get("value")), "loss": m.get("loss")})
            if out[0]["role"] != "system" and system is not None:
                out.insert(0, {"role": "system", "content": system})
            return out
    if "instruction" in row and "input" in row:
        query = "\n".join(t for t in (row["instruction"], row["input"]) if t)
    else:
        query = next((row[k] for k in ("query", "prompt", "question", "problem") if k in row), None)
    response = next((row[k] for k in ("response", "answer", "output", "answers", "completion") if k in row), None)
    if isinstance(response, list):
        response = response[0]
    out = [] if system is None else [{"role": "system", "content": system}]
    for q, a in (row.get("history") or []) + [[query, response]]:
        if q is not None:
            out.append({"role": "user", "content": q})
        if a is not None:
            out.append({"role": "assistant", "content": a})
    return out


def contexts(messages, default_system):
    """[(text, trained on)] before joining."""
    messages = [dict(m) for m in messages]
    system = default_system
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    merged = []
    for m in messages:
        if merged and merged[-1]["role"] == m["role"]:
            merged[-1]["content"] += m["content"]
        else:
            merged.append(m)
    if merged[0]["role"] == "assistant":
        merged.insert(0, {"role": "user", "content": ""})
    if len(merged) % 2:
        merged.append({"role": "assistant", "content": None})
    out = []
    if system:
        out.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for i in range(0, len(merged), 2):
        user, assistant = merged[i], merged[i + 1]
        assert (user["role"], assistant["role"]) == ("user", "assistant"), merged
        out.append((f"<|im_start|>user\n{user['content']}<|im_end|>\n<|im_start|>assistant\n", False))
        if assistant["content"] is None:
            continue
        out.append((assistant["content"], assistant.get("loss") is not False))
        last = i + 2 == len(merged)
        out.append((SUFFIX, last))  # a separator between rounds is not trained on at first
    return out


def encode(tok, messages, default_system):
    joined = []
    for text, loss in contexts(messages, default_system):
        if joined and joined[-1][1] == loss:
            joined[-1][0] += text
        else:
            joined.append([text, loss])
    ids, labels = [], []
    for text, loss in joined:
        part = tok.encode(text, add_special_tokens=False).ids
        ids += part
        labels += part if loss else [-100] * len(part)
    suffix = tok.encode(SUFFIX, add_special_tokens=False).ids
    for i in range(1, len(ids)):  # ... and then it is, where it ends a stretch that is
        if labels[i - 1] != -100 and labels[i] == -100 and ids[i : i + len(suffix)] == suffix:
            labels[i : i + len(suffix)] = suffix
    labels[0] = -100
    return ids, labels


def msg(*turns, **extra):
    roles = ["user", "assistant"]
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)], **extra}


ROWS = [
    {"instruction": "你是谁?", "input": "", "output": "我是一个由 CSDN 迪菲赫尔曼 开发和维护的大语言模型。"},
    {"instruction": "Translate to German.", "input": "The bridge is closed.", "output": "Die Brücke ist gesperrt."},
    {"instruction": "", "input": "only input", "output": "yes"},
    {"query": "2 + 2?", "response": "4"},
    {"question": "\n\nleading line ends", "answer": "\n\nleading too\n\n"},
    {"prompt": " leading space", "completion": " leading space"},
    {"query": "trailing \n", "response": "trailing \n"},
    {"query": "", "response": "nothing asked"},
    {"query": "nothing said", "response": ""},
    {"query": "of a list", "answers": ["first", "second"]},
    {"query": "third", "response": "three", "history": [["first", "one"], ["second", "two"]]},
    {"query": "with system", "response": "ok", "system": "Speak like a pirate."},
    {"query": "with empty system", "response": "ok", "system": ""},
    {"query": "with system prompt", "response": "ok", "system_prompt": "Be\nbrief."},
    {"response": "no query at all"},
    msg("Hi", "Hello! How can I help?", "Tell me a joke", "Why did the chicken…?"),
    msg("a", "b", "c", "d", "e", "f"),
    msg("ends with", "the user", "so nothing follows"),
    msg("ends with", "\n", "line ends", "\n\n\n"),
    msg("row system", "loses", system="to none"),
    {"messages": [{"role": "system", "content": "in the messages"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": "in the column"},
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "user", "content": "one, "}, {"role": "user", "content": "two"}, {"role": "assistant", "content": "three, "}, {"role": "assistant", "content": "four"}]},
    {"messages": [{"role": "assistant", "content": "opens"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "not trained on", "loss": False}, {"role": "user", "content": "q2"}, {"role": "assistant", "content": "trained on", "loss": True}]},
    {"conversations": [{"from": "human", "value": "naïve café"}, {"from": "gpt", "value": "é"}]},
    {"conversation": [{"human": "pair 1", "assistant": "one"}, {"human": "pair 2", "assistant": "two"}], "system": "pairs"},
    {"query": "emoji 👩‍👩‍👧 and ½٤Ⅻ", "response": "def f(x):\n\treturn x  # 12345\n"},
]


def main():
    tok = Tokenizer.from_file(sys.argv[1])
    for default_system in (DEFAULT, "", "Another default."):
        for row in ROWS:
            ids, labels = encode(tok, messages_of(row), default_system)
            print(json.dumps({"row": row, "default_system": default_system, "ids": ids, "labels": labels}, ensure_ascii=False))


main()
