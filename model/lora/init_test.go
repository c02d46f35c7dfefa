package lora

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// PEFT's gaussian start: A normal of standard deviation 1/R, B zero.
func TestInitGaussian(t *testing.T) {
	base := config(t, "mini_untied")
	c := Config{R: 8, Alpha: 8, Targets: []string{AllLinear}, RankPattern: map[string]int{"v_proj": 2}, Init: InitGaussian}
	s, err := New(base, c)
	if err != nil {
		t.Fatal(err)
	}
	params := s.Init(1)
	sum, square, beyond, n := 0.0, 0.0, 0.0, 0.0 // of A * R, which is standard normal
	for _, m := range s.modules {
		for _, a := range params[m.a : m.a+m.rank*m.in] {
			z := float64(a) * float64(m.rank)
			sum, square, n = sum+z, square+z*z, n+1
			if math.Abs(z) > 2 {
				beyond++
			}
		}
		if slices.ContainsFunc(params[m.b:m.b+m.out*m.rank], func(x float32) bool { return x != 0 }) {
			t.Errorf("%s.B does not start at zero", m.name)
		}
	}
	if mean, variance := sum/n, square/n; math.Abs(mean) > 4/math.Sqrt(n) || math.Abs(variance-1) > 4*math.Sqrt(2/n) || math.Abs(beyond/n-0.0455) > 0.01 {
		t.Errorf("A*R of %v numbers: mean %g, variance %g, beyond two deviations %g", n, mean, variance, beyond/n)
	}
	if !slices.Equal(params, s.Init(1)) || slices.Equal(params, s.Init(2)) {
		t.Error("the start does not follow the seed")
	}
	dir := t.TempDir()
	if err := s.Save(dir, params, Base{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	var saved map[string]any
	if text, err := os.ReadFile(filepath.Join(dir, ConfigFile)); err != nil || json.Unmarshal(text, &saved) != nil || saved["init_lora_weights"] != "gaussian" {
		t.Errorf("%s: %v, %v", ConfigFile, saved["init_lora_weights"], err)
	}
	c.Init = "pissa"
	if _, err := New(base, c); err == nil {
		t.Error("pissa is accepted")
	}
}
