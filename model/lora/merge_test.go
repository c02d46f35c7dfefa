package lora

import (
	"math"
	"slices"
	"testing"

	"qlora/internal/golden"
	"qlora/model/weights"
)

// adapterOf loads a golden adapter of the mini model.
func adapterOf(t *testing.T, name string) *Adapter {
	t.Helper()
	a := &Adapter{Name: name}
	var err error
	if a.Set, a.Params, a.Base, err = Load(golden.Path(t, "lora", "mini", "adapter_"+name), config(t, "mini")); err != nil {
		t.Fatal(err)
	}
	return a
}

// update is that of adapters with their weights.
func update(t *testing.T, names []string, weights ...float64) *Update {
	t.Helper()
	var all []*Adapter
	for _, name := range names {
		all = append(all, adapterOf(t, name))
	}
	u, err := NewUpdate(all, weights)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// The weights that merging gives are those PEFT's merge_and_unload gave.
func TestMergeIsPEFTs(t *testing.T) {
	base, err := weights.Open(golden.Path(t, "models", "mini"))
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	want, err := weights.OpenSafetensors(golden.Path(t, "lora", "mini", "merged_a_proj_weights.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	u := update(t, []string{"a"}, 1)
	if len(u.Names()) != len(want.Names()) {
		t.Fatalf("%d modules, PEFT changed %d", len(u.Names()), len(want.Names()))
	}
	for _, name := range u.Names() {
		merged, err := want.Tensor(name + ".weight")
		if err != nil {
			t.Fatal(err)
		}
		from, err := base.Tensor(name + ".weight")
		if err != nil {
			t.Fatal(err)
		}
		rows := from.Rows()
		got, ref := make([]float32, rows*from.RowLen()), make([]float32, rows*from.RowLen())
		if err := from.ReadRowsF32(got, 0, rows); err != nil {
			t.Fatal(err)
		}
		if err := merged.ReadRowsF32(ref, 0, rows); err != nil {
			t.Fatal(err)
		}
		before := slices.Clone(got)
		u.Add(name, got[:from.RowLen()*3], 0, 3) // in two pieces
		u.Add(name, got[from.RowLen()*3:], 3, rows-3)
		var off, moved float64
		for i := range ref {
			off = max(off, math.Abs(float64(got[i]-ref[i])))
			moved = max(moved, math.Abs(float64(before[i]-ref[i])))
		}
		if off > 1e-6 || moved < 1e-3 {
			t.Errorf("%s: %g from PEFT's, whose own change is %g", name, off, moved)
		}
	}
}

// delta is what an update adds to a module.
func delta(u *Update, module string) []float32 {
	in, out := u.Shape(module)
	d := make([]float32, in*out)
	u.Add(module, d, 0, out)
	return d
}

// One adapter that every server reads alike is the same update: of a sum, of rsLoRA, of unequal ranks, of some layers.
func TestUpdateAsOneAdapter(t *testing.T) {
	base := config(t, "mini")
	odd, err := New(base, Config{R: 4, Alpha: 8, TargetRegex: `model\.layers\.1\..*(q|up)_proj`, RankPattern: map[string]int{"up_proj": 7}, AlphaPattern: map[string]float64{"q_proj": 5}})
	if err != nil {
		t.Fatal(err)
	}
	params := odd.Init(1)
	for i := range params {
		params[i] += float32(i%17) / 100
	}
	some := &Adapter{Name: "odd", Set: odd, Params: params}
	patterned, err := NewUpdate([]*Adapter{some}, []float64{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, u := range map[string]*Update{
		"a": update(t, []string{"a"}, 1), "rslora": update(t, []string{"rslora"}, 1), "sum": update(t, []string{"a", "b", "rslora"}, 0.7, 0.3, -2), "patterns": patterned,
	} {
		one, err := u.Adapter(name, Base{Name: "mini"})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := one.Set.Save(dir, one.Params, one.Base); err != nil {
			t.Fatal(err)
		}
		back := &Adapter{}
		if back.Set, back.Params, _, err = Load(dir, base); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c := back.Set.Config; c.RSLoRA || len(c.RankPattern)+len(c.AlphaPattern) > 0 || c.Alpha != float64(c.R) {
			t.Errorf("%s: %+v", name, c)
		}
		again, err := NewUpdate([]*Adapter{back}, []float64{1})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(again.Names(), u.Names()) {
			t.Fatalf("%s: modules %v, want %v", name, again.Names(), u.Names())
		}
		for _, module := range u.Names() {
			want := delta(u, module)
			for i, v := range delta(again, module) {
				if math.Abs(float64(v-want[i])) > 1e-6 {
					t.Fatalf("%s: %s: element %d is %v, want %v", name, module, i, v, want[i])
				}
			}
		}
	}
	if _, err := update(t, []string{"a"}, 0).Adapter("", Base{}); err == nil {
		t.Error("an adapter of nothing was made")
	}
}

// An adapter of a rank that does not run unmerged is merged all the same.
func TestHighRankMerges(t *testing.T) {
	base := config(t, "mini")
	set, err := newSet(base, Config{R: 96, Alpha: 192, Targets: []string{"v_proj"}}, MaxMergedRank)
	if err != nil {
		t.Fatal(err)
	}
	params := set.Init(1)
	for i := range params {
		params[i] += float32(i%7) / 100
	}
	dir := t.TempDir()
	if err := set.Save(dir, params, Base{}); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := Load(dir, base); err == nil {
		t.Error("rank 96 was loaded to run")
	}
	back := &Adapter{}
	if back.Set, back.Params, _, err = LoadToMerge(dir, base); err != nil || !slices.Equal(back.Params, params) {
		t.Fatal(err)
	}
	u, err := NewUpdate([]*Adapter{back}, []float64{1})
	if err != nil {
		t.Fatal(err)
	}
	module := u.Names()[0]
	in, _ := u.Shape(module)
	a, b := params[:96*in], params[96*in:]
	want := 0.0
	for r := range 96 {
		want += 2 * float64(b[r]) * float64(a[r*in])
	}
	if got := delta(u, module)[0]; math.Abs(float64(got)-want) > 1e-5 {
		t.Errorf("%v, want %v", got, want)
	}
}
