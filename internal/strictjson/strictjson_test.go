package strictjson

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"qlora/internal/allocs"
)

type target struct {
	Size  int               `json:"hidden_size"`
	Pair  [2]int            `json:"pair"`
	List  []inner           `json:"list"`
	Sub   *inner            `json:"sub"`
	Named map[string]inner  `json:"named"`
	Raw   json.RawMessage   `json:"raw"`
	Text  map[string]string `json:"text"`
}

type inner struct {
	Name string `json:"name"`
}

func TestUnmarshal(t *testing.T) {
	const doc = ` {"hidden_size": 3, "pair":[1 ,2], "list":[{"name":"a\"}"},{}], "sub":{"name":"é"},
		"named":{"NAME":{"name":"n"},"name":{"name":"m"}}, "raw":{"A":1,"a":2}, "Unknown":[[],{}], "text":{"k":"v"}} ` + "\n"
	var got target
	if err := Unmarshal([]byte(doc), 1000, &got); err != nil {
		t.Fatal(err)
	}
	want := target{Size: 3, Pair: [2]int{1, 2}, List: []inner{{`a"}`}, {}}, Sub: &inner{"é"},
		Named: map[string]inner{"NAME": {"n"}, "name": {"m"}}, Raw: json.RawMessage(`{"A":1,"a":2}`),
		Text: map[string]string{"k": "v"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	cases := []struct {
		name, doc string
		offset    int64
		msg       string
	}{
		{"empty", ``, 0, "unexpected end"},
		{"cut", `{"hidden_size":`, 15, "unexpected end"},
		{"trailing", `{} {}`, 4, "after top-level value"},
		{"null document", ` null`, 1, "is null"},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", 6, "invalid UTF-8"},
		{"over the limit", `{"a":"` + strings.Repeat("x", 2000) + `"}`, 1000, "limit of 1000"},
		{"key twice", `{"a":1,"b":2,"a":3}`, 13, `"a" occurs twice`},
		{"key twice, escaped", `{"a":1,"\u0061":3}`, 7, `"a" occurs twice`},
		{"key twice inside", `{"raw":[{"q":1,"q":1}]}`, 15, `"q" occurs twice`},
		{"ninth key is the first", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"a":9}`, 49, `"a" occurs twice`},
		{"tenth key is the ninth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"i":9}`, 55, `"i" occurs twice`},
		{"wrong case", `{"HIDDEN_SIZE":3}`, 1, `must be spelled "hidden_size"`},
		{"wrong case inside", `{"list":[{"Name":"x"}]}`, 10, `must be spelled "name"`},
		{"wrong case in a map's struct", `{"named":{"x":{"Name":"x"}}}`, 15, `must be spelled "name"`},
		{"short array", `{"pair":[]}`, 8, "a list of 0 where 2 belong"},
		{"long array", `{"pair":[1,2,3]}`, 8, "a list of 3 where 2 belong"},
		{"depth 65", deep(65), 64, "deeper than 64"},
		{"depth 10001", deep(10001)[:900] + deep(10001)[20002-100:], 1000, "unexpected end"},
		{"wrong kind", `{"hidden_size":"3"}`, 18, "hidden_size: a JSON string where a int belongs"},
		{"fraction", `{"hidden_size":1e3}`, 18, "number 1e3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var v any = &target{}
			if strings.HasPrefix(c.doc, "[") {
				v = new(any)
			}
			err := Unmarshal([]byte(c.doc), 1000, v)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if e.Offset != c.offset || !strings.Contains(e.Msg, c.msg) {
				t.Errorf("got byte %d %q, want byte %d %q", e.Offset, e.Msg, c.offset, c.msg)
			}
		})
	}
	if err := Unmarshal([]byte(deep(64)), 1000, new(any)); err != nil {
		t.Errorf("depth 64: %v", err)
	}
	if err := Unmarshal([]byte(deep(10001)), 1<<20, new(any)); err == nil {
		t.Error("depth 10001 is accepted")
	}
}

func TestMembers(t *testing.T) {
	doc := []byte(` { "b" : {"x":[1]} , "a\n":7}`)
	o, err := Parse(doc, 100)
	if err != nil {
		t.Fatal(err)
	}
	got, err := o.Members(2)
	if err != nil {
		t.Fatal(err)
	}
	want := []Member{{"b", Value{json.RawMessage(`{"x":[1]}`), 9}}, {"a\n", Value{json.RawMessage(`7`), 27}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{`[]`, `3`, `null`, `{"a":1,"a":1}`} {
		if _, err := Parse([]byte(bad), 100); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	var fault *Error
	if _, err := o.Members(1); !errors.As(err, &fault) || *fault != (Error{1, "2 keys, more than 1"}) {
		t.Errorf("got %v", err)
	}
}

// Keys are those that encoding/json reads, and are compared as what they stand for.
func TestKeys(t *testing.T) {
	for _, doc := range []string{`{"\u00e9":1,"e":2,"\ud83d\ude00":3,"\ud83d":4,"\udc00\u0041":5,"\"\\\/\b\f\n\r\t":6,"":7,"\u0000":8}`,
		`{"a\u0062":1,"ab c":2,"a":3,"aB":4,"\ud83dx":5,"\ud83d\n":6}`} {
		whole := map[string]json.RawMessage{}
		if err := json.Unmarshal([]byte(doc), &whole); err != nil {
			t.Fatal(err)
		}
		o, err := Parse([]byte(doc), 1000)
		if err != nil {
			t.Fatal(err)
		}
		err = o.Each(func(key []byte, v Value) error {
			if string(whole[string(key)]) != string(v.Raw) {
				t.Errorf("%q: %s", key, v.Raw)
			}
			delete(whole, string(key))
			return nil
		})
		if err != nil || len(whole) > 0 {
			t.Errorf("%v, left %q", err, whole)
		}
	}
	for _, doc := range []string{`{"\ud83d\ude00":1,"x":2,"😀":3}`, `{"\ud800":1,"\udfff":2}`, `{"a\/":1,"a/":2}`} {
		if _, err := Parse([]byte(doc), 1000); err == nil || !strings.Contains(err.Error(), "occurs twice") {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// Types that bound what they hold, and the place of a fault in one.
func TestBounded(t *testing.T) {
	var got struct {
		A List[string] `json:"a"`
		B Map[int]     `json:"b"`
		C int          `json:"c"`
	}
	if err := Unmarshal([]byte(`{"a":["x","y"],"b":{"k":1}}`), 1000, &got); err != nil || len(got.A) != 2 || got.B["k"] != 1 {
		t.Fatal(got, err)
	}
	many := strings.Repeat(`"",`, MaxItems)
	for doc, want := range map[string]string{
		`{"c":1,"a":[` + many + `""]}`: `byte 11: a: "[\"\",\"\",\"\",\"\",\"\",\"\",\""… has 4097 elements, more than 4096`,
		`{"c":1,"b":{"k":"v"}}`:        `byte 11: b: a JSON string where a int belongs, in "{\"k\":\"v\"}"`,
	} {
		if err := Unmarshal([]byte(doc), 1<<20, &got); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	for doc, want := range map[string]int{`[ ]`: 0, `[1]`: 1, `[ [1,2] , {"a":[",",1]},"]", null,-1e3]`: 5} {
		if n := Elements([]byte(doc)); n != want {
			t.Errorf("%s has %d elements", doc, n)
		}
	}
	if err := Unmarshal([]byte(`{"a":[`+many[:len(many)-1]+`]}`), 1<<20, &got); err != nil || len(got.A) != MaxItems {
		t.Errorf("%d elements: %v", len(got.A), err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"hidden_size":3,"pair":[1,2],"list":[{"name":"\u00e9"}]}`))
	f.Add([]byte(`{"a":{"a":[null,true,-1.5e3,"\\"]},"A":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if Unmarshal(data, 1<<20, &target{}) == nil && !json.Valid(data) {
			t.Error("invalid JSON is accepted")
		}
		var o Object
		var err error
		allocs.Bound(t, len(data), func() { o, err = Parse(data, 1<<20) })
		if err != nil {
			return
		}
		list, err := o.Members(len(data))
		if err != nil {
			t.Fatal(err)
		}
		whole := make(map[string]json.RawMessage)
		if err := json.Unmarshal(data, &whole); err != nil || len(whole) != len(list) {
			t.Fatalf("%d members, encoding/json has %d, %v", len(list), len(whole), err)
		}
		for _, m := range list {
			if string(whole[m.Key]) != string(m.Raw) {
				t.Errorf("%q: %q, encoding/json has %q", m.Key, m.Raw, whole[m.Key])
			}
		}
	})
}
