package tokenizer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// mergeByDefinition is byte pair merging as it is defined, one merge at a time.
func mergeByDefinition(tok *Tokenizer, ranks map[[2]string]int, piece string) []int32 {
	var parts []string
	for i := range len(piece) {
		if _, ok := tok.vocab[toPrintable(piece[i:i+1])]; ok {
			parts = append(parts, piece[i:i+1])
		}
	}
	for {
		best, at := len(ranks), -1
		for i := range max(len(parts)-1, 0) {
			if r, ok := ranks[[2]string{parts[i], parts[i+1]}]; ok && r < best {
				best, at = r, i
			}
		}
		if at < 0 {
			break
		}
		parts[at] += parts[at+1]
		parts = slices.Delete(parts, at+1, at+2)
	}
	var ids []int32
	for _, p := range parts {
		ids = append(ids, tok.vocab[toPrintable(p)])
	}
	return ids
}

func ranksOf(t testing.TB, merges [][2]string) map[[2]string]int {
	t.Helper()
	ranks := make(map[[2]string]int, len(merges))
	for i, m := range merges {
		for k := range m {
			raw, err := fromPrintable(m[k])
			if err != nil {
				t.Fatal(err)
			}
			m[k] = raw
		}
		ranks[m] = i
	}
	return ranks
}

func checkPiece(t *testing.T, tok *Tokenizer, ranks map[[2]string]int, piece string) {
	t.Helper()
	want := mergeByDefinition(tok, ranks, piece)
	if got := tok.bpe.appendPiece(nil, piece); !slices.Equal(got, want) {
		t.Fatalf("%q: got %v, want %v", piece, got, want)
	}
}

// TestMergeReal checks the search against the definition with the real
// vocabularies: tokens, tokens run together, and random bytes.
func TestMergeReal(t *testing.T) {
	p, err := parseModel(must(t, qwenJSON))
	if err != nil {
		t.Fatal(err)
	}
	var smol [][2]string
	for _, m := range must(t, smollmVocab).Merges {
		left, right, _ := strings.Cut(m, " ")
		smol = append(smol, [2]string{left, right})
	}
	for _, m := range []struct {
		tok    *Tokenizer
		merges [][2]string
	}{{qwen(t), p.merges}, {smolLM(t), smol}} {
		ranks := ranksOf(t, m.merges)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range 2_000 {
			// Each 75th token by itself, then pieces of one to four random tokens.
			checkPiece(t, m.tok, ranks, m.tok.tokens[75*i%len(m.tok.tokens)])
			var piece []byte
			for range 1 + rng.IntN(4) {
				token := m.tok.tokens[rng.IntN(len(m.tok.tokens))]
				from := rng.IntN(len(token))
				piece = append(piece, token[from:]...)
			}
			if i%5 == 0 {
				piece[rng.IntN(len(piece))] = byte(rng.Uint32())
			}
			checkPiece(t, m.tok, ranks, string(piece))
		}
		for _, unit := range hostile {
			for n := range 40 {
				checkPiece(t, m.tok, ranks, strings.Repeat(unit, n))
			}
		}
	}
}

// TestMergeRandom does so with random rules over a few letters, where equal and
// overlapping merges abound.
func TestMergeRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 100 {
		letters := "abc"[:1+rng.IntN(3)]
		v := Vocab{Pre: "gpt-2", BOS: None, EOS: None, Pad: None}
		for i := range letters {
			v.Tokens = append(v.Tokens, letters[i:i+1])
		}
		var merges [][2]string
		for range rng.IntN(30) {
			m := [2]string{v.Tokens[rng.IntN(len(v.Tokens))], v.Tokens[rng.IntN(len(v.Tokens))]}
			if made := m[0] + m[1]; !slices.Contains(v.Tokens, made) && len(made) < 20 {
				merges = append(merges, m)
				v.Merges = append(v.Merges, m[0]+" "+m[1])
				v.Tokens = append(v.Tokens, made)
			}
		}
		for range v.Tokens {
			v.Types = append(v.Types, typeNormal)
		}
		// Ids are in no order.
		rng.Shuffle(len(v.Tokens), func(i, j int) { v.Tokens[i], v.Tokens[j] = v.Tokens[j], v.Tokens[i] })
		tok, err := FromVocab(v)
		if err != nil {
			t.Fatal(round, err)
		}
		ranks := ranksOf(t, merges)
		for range 200 {
			piece := make([]byte, 1+rng.IntN(40))
			for i := range piece {
				piece[i] = letters[rng.IntN(len(letters))]
			}
			if rng.IntN(10) == 0 {
				piece[0] = 'z' // has no token
			}
			checkPiece(t, tok, ranks, string(piece))
		}
	}
}

func ExampleTokenizer_Encode() {
	tok, err := qwenOnce()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(tok.Encode("Hello world"))
	fmt.Println(tok.Encode("<|im_end|>"), tok.EncodeSpecial("<|im_end|>"))
	// Output:
	// [9707 1879]
	// [27 91 318 6213 91 29] [151645]
}
