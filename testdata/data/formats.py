"""Write the files of formats/: tables as other programs write them, and what they hold as the
same programs read it.

    python3 formats.py DIR

Needs pyarrow, pandas and binpacking 1.5.2.
"""

import ast
import io
import json
import random
import sys
from pathlib import Path

import binpacking
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

out = Path(sys.argv[1])


def jsonl(name, rows):
    with open(out / name, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


# Parquet: nested columns with nulls at every level, under each compression and page version.
CHATS = [
    {
        "messages": [{"role": "user", "content": f"question {i} 你好", "loss": None}, {"role": "assistant", "content": "answer\n\"%d\"" % i, "loss": i % 2 == 0}],
        "system": [None, "", "Be brief."][i % 3],
        "n": None if i % 5 == 0 else i - 7,
        "score": [None, 0.5, 1e300, -3.0][i % 4],
        "meta": None if i % 4 == 0 else {"z": "1", "a": None},
        "lists": [None, [], [[]], [[1, None], [], None, [3]]][i % 4],
        "one": f"row {i}",
    }
    for i in range(150)
] + [{"messages": [], "one": "no messages"}, {"messages": None, "one": "null messages"}, {"messages": [None], "one": "a null message"}]
SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string()), ("loss", pa.bool_())]))),
        ("system", pa.string()),
        ("n", pa.int64()),
        ("score", pa.float64()),
        ("meta", pa.struct([("z", pa.string()), ("a", pa.string())])),
        ("lists", pa.list_(pa.list_(pa.int32()))),
        ("one", pa.string()),
    ]
)
chats = pa.Table.from_pylist(CHATS, schema=SCHEMA)
pq.write_table(chats, out / "snappy.parquet", compression="snappy", row_group_size=64)
pq.write_table(chats, out / "zstd_v2.parquet", compression="zstd", data_page_version="2.0", row_group_size=100, write_page_index=True)
pq.write_table(chats, out / "gzip_plain.parquet", compression="gzip", use_dictionary=False, data_page_size=512)
pq.write_table(chats, out / "brotli.parquet", compression="brotli", use_compliant_nested_type=False)
pq.write_table(chats.slice(0, 3), out / "lz4.parquet", compression="lz4")
jsonl("chats.jsonl", chats.to_pylist())

# Text tables, read as ms-swift's loader has pandas read them, and every cell as text.
CSV = {
    "plain.csv": "query,response\nhi,hello\n2 + 2?,4\n",
    "quoted.csv": 'query,response,system\n"a, b","say ""hi""",\n"two\nlines","NA",null\n,nan,"  x "\n',
    "crlf_bom.csv": "\ufeffinstruction,input,output\r\nTranslate,桥,bridge\r\n\r\nlast,,no line end",
    "history.csv": "query,response,history\nq,r,\"[['a', 'b'], [\"\"c's\"\", 'd']]\"\n",
    "index.csv": ",query,response\n0,q,r\n1,q2,r2\n",
}
for name, text in CSV.items():
    with open(out / name, "w", encoding="utf-8", newline="") as f:
        f.write(text)
    table = pd.read_csv(io.BytesIO(text.encode()), na_filter=False, dtype=str)
    jsonl(name + ".jsonl", table.to_dict("records"))

# Python literals and what they mean; null for those that are refused.
LITERALS = r"""
[['query1', 'response1'], ['query2', None]]
[["it's", 'a "quote"'], ('tuple', "pair"),]
[{'role': 'user', 'content': 'naïve\n\t\\ \x41\u00e9\U0001F600 \101'}, {"from": 'gpt', 'loss': True, 'n': -1.5e3}]
{'a': [], 'b': {}, 'c': (), 'd': ('x',), 'e': False}
('con' "cat" 'enated', r'raw\n', u'u')
[1, -2, +3, 1_000, .5, 2., 1e5, -0.0, 10000000000000000000000]
'''three 'single' quotes
and a line'''
['\q \d', 'a\
b']
  [ ]  
[1, 2
,3]
[
(
[1
['a'
{'a' 1}
{'a': 1
{1: 2}
[1 2]
['a
b']
(1)
[1,,2]
foo
[foo]
f('x')
b'bytes'
{1, 2}
1+2j
[1] [2]
nan
'\ud83d'
True1
[0x]
""".strip("\n").split("\n")
LITERALS = LITERALS[:6] + ["\n".join(LITERALS[6:8]), "\n".join(LITERALS[8:10])] + [LITERALS[10]] + ["\n".join(LITERALS[11:13])] + LITERALS[13:21] + ["\n".join(LITERALS[21:23])] + LITERALS[23:]


def meaning(text):
    try:
        value = ast.literal_eval(text)
        plain = json.dumps(value, allow_nan=False)
        plain.encode()
        json.loads(plain).__str__().encode("utf-8")  # no half of a surrogate pair
        if isinstance(value, dict) and not all(isinstance(k, str) for k in value):
            return None
        return plain
    except (ValueError, SyntaxError, TypeError, UnicodeError):
        return None


jsonl("literals.jsonl", [{"text": t, "json": meaning(t)} for t in LITERALS])

# Units of packing, by the lengths of their samples.
random.seed(1)
cases = []
for most, n in ((64, 5), (100, 30), (100, 200), (2048, 400)):
    lengths = [random.randint(1, most if random.random() < 0.3 else max(1, most // 5)) for _ in range(n)]
    bins = binpacking.to_constant_volume([(i, l) for i, l in enumerate(lengths)], most, weight_pos=1)
    cases.append({"length": most, "samples": lengths, "units": [[w for _, w in b] for b in bins]})
jsonl("units.jsonl", cases)
