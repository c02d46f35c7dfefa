package plan

import "qlora/model/ops"

// Row is a packed row of samples of so many tokens each, of whose tokens the last share are labels.
func Row(length, samples int, labels float64) ops.HostBatch {
	h := ops.HostBatch{SegStart: []int32{0}, Step: 1, LossScale: 1}
	first := length - int(float64(length)*labels)
	for s := range samples {
		start := int32(len(h.IDs))
		for p := range length {
			h.IDs, h.Pos, h.Sample = append(h.IDs, 0), append(h.Pos, int32(p)), append(h.Sample, int32(s))
			if p >= max(first, 1) { // predicted by the token before it
				h.Rows, h.Targets = append(h.Rows, start+int32(p)-1), append(h.Targets, 0)
			}
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
	}
	return h
}
