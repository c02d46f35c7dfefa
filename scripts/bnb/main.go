// Command bnb quantises a model's folder to NF4 as bitsandbytes stores it, for check.py to compare with the real
// library's checkpoint:
//
//	go run ./scripts/bnb SOURCE TARGET
//
// The linear layers are quantised from bfloat16, with double quantisation; all else is copied as it is.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"qlora/internal/nf4"
	"qlora/model/weights"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: bnb SOURCE TARGET")
		os.Exit(2)
	}
	if err := quantise(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "bnb:", err)
		os.Exit(1)
	}
}

func quantise(source, target string) error {
	m, err := weights.Open(source)
	if err != nil {
		return err
	}
	defer m.Close()
	var entries []weights.Entry
	for _, name := range m.Names() {
		t, err := m.Tensor(name)
		if err != nil {
			return err
		}
		more, err := entriesOf(t)
		if err != nil {
			return err
		}
		entries = append(entries, more...)
	}
	if err := os.MkdirAll(target, 0o777); err != nil {
		return err
	}
	if err := weights.WriteModel(target, weights.PTMetadata, entries, 5e9); err != nil {
		return err
	}
	text, err := m.ReadFile("config.json")
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	config["quantization_config"] = weights.QuantizationConfig(true)
	if text, err = json.MarshalIndent(config, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(target, "config.json"), text, 0o666)
}

func entriesOf(t *weights.Tensor) ([]weights.Entry, error) {
	if !strings.HasSuffix(t.Name, "_proj.weight") {
		return []weights.Entry{{Name: t.Name, DType: t.DType, Shape: t.Shape, Write: func(w io.Writer) error {
			raw := make([]byte, t.Rows()*t.RowLen()*map[weights.DType]int{weights.BF16: 2, weights.F32: 4}[t.DType])
			if err := t.ReadRowsRaw(raw, 0, t.Rows()); err != nil {
				return err
			}
			_, err := w.Write(raw)
			return err
		}}}, nil
	}
	q, err := nf4.Quantize(t.Rows(), t.RowLen(), true, func(dst []float32, row, count int) error {
		err := t.ReadRowsF32(dst, row, count)
		for i, v := range dst {
			dst[i] = nf4.RoundBF16(v)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return weights.NF4Entries(t.Name, t.Rows(), t.RowLen(), q)
}
