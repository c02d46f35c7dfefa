package main

import (
	"bytes"
	endian "encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/internal/bfloat16"
	"qlora/internal/nf4"
	"qlora/model/weights"
)

// wideModel is miniModel with rows of whole blocks of NF4: 192 numbers in the feed-forward. Its linear layers are stored in
// bitsandbytes' form, or in float32.
func wideModel(t *testing.T, quantised bool) string {
	t.Helper()
	const ffn = 192
	dir := miniModel(t)
	src, err := weights.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var entries []weights.Entry
	for _, name := range src.Names() {
		m, err := src.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		values := make([]float32, m.Rows()*m.RowLen())
		if err := m.ReadRowsF32(values, 0, m.Rows()); err != nil {
			t.Fatal(err)
		}
		rows, cols := m.Rows(), m.RowLen()
		if strings.Contains(name, "gate_proj") || strings.Contains(name, "up_proj") {
			values, rows = append(values, slices.Repeat(values[:cols], ffn-rows)...), ffn
		}
		if strings.Contains(name, "down_proj") {
			values, cols = wider(values, cols, ffn), ffn
		}
		for i, v := range values {
			values[i] = bfloat16.Round(v) // as both are computed with
		}
		switch {
		case quantised && strings.Contains(name, "_proj.weight"):
			q, err := nf4.Quantize(rows, cols, true, func(dst []float32, row, n int) error { copy(dst, values[row*cols:(row+n)*cols]); return nil })
			if err != nil {
				t.Fatal(err)
			}
			parts, err := weights.NF4Entries(name, rows, cols, q)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, parts...)
		case len(m.Shape) == 1:
			entries = append(entries, weights.F32Entry(name, []int{cols}, values))
		default:
			entries = append(entries, weights.F32Entry(name, []int{rows, cols}, values))
		}
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), nil, entries); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(config), `"intermediate_size": 160`, `"intermediate_size": 192`, 1)
	if quantised {
		more, err := json.Marshal(weights.QuantizationConfig(true))
		if err != nil {
			t.Fatal(err)
		}
		text = strings.Replace(text, "{", `{"quantization_config": `+string(more)+",", 1)
	}
	write(t, filepath.Join(dir, "config.json"), text)
	return dir
}

// wider repeats the first numbers of each row of so many until it has n.
func wider(values []float32, cols, n int) []float32 {
	var all []float32
	for row := range slices.Chunk(values, cols) {
		all = append(append(all, row...), row[:n-cols]...)
	}
	return all
}

// A base quantised while loading, and one that was stored so, learn the same bits; not those of the base as it was. The
// adapter brings its base's quantisation to infer.
func TestQLoRA(t *testing.T) {
	plain, stored := wideModel(t, false), wideModel(t, true)
	adapters := map[string][]byte{}
	work := t.TempDir()
	for name, args := range map[string][]string{
		"in 16 bits": {"--model", plain, "--torch_dtype", "bfloat16"}, "quantised": {"--model", plain, "--quant_method", "bnb", "--quant_bits", "4"}, "stored": {"--model", stored},
	} {
		o := ok(t, work, "", append([]string{"sft", "--dataset", "random:40x4", "--max_steps", "2", "--gradient_accumulation_steps", "2", "--backend", "cpu", "--report_to", "none",
			"--output_dir", name, "--add_version", "false"}, args...)...)
		if want := map[bool]string{true: "weights in bfloat16", false: "weights in nf4"}[name == "in 16 bits"]; !strings.Contains(o.stderr, want) {
			t.Errorf("%s: not %q in\n%s", name, want, o.stderr)
		}
		file, err := os.ReadFile(filepath.Join(work, name, "checkpoint-2", "adapter_model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		adapters[name] = file[8+endian.LittleEndian.Uint64(file):] // behind the header, which names the base
	}
	if !bytes.Equal(adapters["quantised"], adapters["stored"]) || bytes.Equal(adapters["quantised"], adapters["in 16 bits"]) {
		t.Errorf("of %v: quantised and stored equal %v, quantised and plain equal %v", slices.Sorted(maps.Keys(adapters)),
			bytes.Equal(adapters["quantised"], adapters["stored"]), bytes.Equal(adapters["quantised"], adapters["in 16 bits"]))
	}
	o := ok(t, work, "hello\n", "infer", "--adapters", "quantised/checkpoint-2", "--backend", "cpu", "--temperature", "0", "--max_new_tokens", "4", "--stream", "false")
	if !strings.Contains(o.stderr, "quantisation: bnb in 4 bits") {
		t.Errorf("infer does not take the quantisation of the adapter's base:\n%s", o.stderr)
	}
}
