package bench

import (
	"math"
	"testing"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// TestMeterCounts runs every small case through the meter: what it counts is what the cases say of themselves.
func TestMeterCounts(t *testing.T) {
	b := cpu.New[float32]()
	defer b.Close()
	seen := map[string]bool{}
	for _, c := range opstest.Cases() {
		if c.Size != opstest.Small {
			continue
		}
		m := NewMeter(b, measure.NewHost(b))
		p, err := c.Prepare(m, ops.BF16)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Begin(); err != nil {
			t.Fatal(err)
		}
		p.Run()
		if err := m.End(); err != nil {
			t.Fatal(err)
		}
		var sum result.Op
		for _, o := range m.Ops() {
			seen[o.Name] = true
			sum.FLOPs += o.FLOPs
			sum.Bytes += o.Bytes
			sum.Seconds += o.Seconds
		}
		if math.Abs(sum.FLOPs-c.FLOPs) > 1e-9*c.FLOPs {
			t.Errorf("%s: the meter counts %g FLOPs, the case says %g", c.Name, sum.FLOPs, c.FLOPs)
		}
		// Activations are float32 here, and bfloat16 in the case.
		if c.Bytes > 1e5 && (sum.Bytes < c.Bytes*0.9 || sum.Bytes > c.Bytes*3) {
			t.Errorf("%s: the meter counts %g bytes, the case says %g", c.Name, sum.Bytes, c.Bytes)
		}
		if math.Abs(sum.Seconds-m.span) > 1e-9 {
			t.Errorf("%s: ops and gaps last %v of %v", c.Name, sum.Seconds, m.span)
		}
	}
	for _, name := range []string{"Embed", "RMSNorm", "Linear", "Attention", "SwiGLU", "LinearBack", "RMSNormBack", "AttentionBack", "SwiGLUBack", "LoRAGrad",
		"HeadLoss", "Logits", "KL", "GradNorm", "AdamW", "DecodeAttention", "Sample", "QuantNF4", "DequantNF4", result.Gap} {
		if !seen[name] {
			t.Errorf("no case runs %s", name)
		}
	}
}
