// Command values writes the matrices of a model's decoder layers as float32, rounded to bfloat16 as they are computed with:
//
//	go run ./scripts/bnb/values MODEL FOLDER
package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"qlora/internal/bfloat16"
	"qlora/model/weights"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: values MODEL FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "values:", err)
		os.Exit(1)
	}
}

func write(model, folder string) error {
	m, err := weights.Open(model)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	for _, name := range m.Names() {
		if !strings.HasSuffix(name, "_proj.weight") {
			continue
		}
		t, err := m.Tensor(name)
		if err != nil {
			return err
		}
		values := make([]float32, t.Rows()*t.RowLen())
		if err := t.ReadRowsF32(values, 0, t.Rows()); err != nil {
			return err
		}
		raw := make([]byte, 0, 4*len(values))
		for _, v := range values {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(bfloat16.Round(v)))
		}
		if err := os.WriteFile(filepath.Join(folder, name), raw, 0o666); err != nil {
			return err
		}
	}
	return nil
}
