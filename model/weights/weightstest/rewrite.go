// Package weightstest damages model files, for tests of what reads them.
package weightstest

import (
	"testing"

	"qlora/model/weights"
)

// Tensor is a tensor of a file that is being changed.
type Tensor struct {
	Name  string
	DType weights.DType
	Shape []int
	Data  []byte
}

// Rewrite passes every tensor of the safetensors file at path through change, which may rename, reshape and damage it;
// one whose name becomes "" is left out.
func Rewrite(t testing.TB, path string, change func(*Tensor)) {
	t.Helper()
	file, err := weights.OpenSafetensors(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var entries []weights.Entry
	for _, name := range file.Names() {
		x, err := file.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		size := map[weights.DType]int{weights.F32: 4, weights.BF16: 2}[x.DType]
		e := Tensor{name, x.DType, x.Shape, make([]byte, x.Rows()*x.RowLen()*size)}
		if err := x.ReadRowsRaw(e.Data, 0, x.Rows()); err != nil {
			t.Fatal(err)
		}
		if change(&e); e.Name != "" {
			entries = append(entries, weights.BytesEntry(e.Name, e.DType, e.Shape, e.Data))
		}
	}
	if err := weights.WriteSafetensors(path, file.Metadata, entries); err != nil {
		t.Fatal(err)
	}
}
