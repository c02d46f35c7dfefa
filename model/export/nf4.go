package export

import (
	"context"
	"fmt"
	"regexp"

	"qlora/internal/bfloat16"
	"qlora/internal/nf4"
	"qlora/model/weights"
)

// linearWeight matches the weights that QLoRA holds in 4 bits: the linear layers of the decoder, and not the head.
var linearWeight = regexp.MustCompile(`^model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$`)

// quantized is a weight in NF4 as bitsandbytes makes it of a bfloat16 one.
func quantized(t *weights.Tensor, double bool, read func(dst []float32, row, n int) error) (*nf4.Tensor, error) {
	q, err := nf4.Quantize(t.Rows(), t.RowLen(), double, func(dst []float32, row, n int) error {
		if err := read(dst, row, n); err != nil {
			return err
		}
		for i, v := range dst {
			dst[i] = bfloat16.Round(v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return q, nil
}

// BNB writes a model's folder whose linear layers are in NF4, as bitsandbytes' load_in_4bit saves them; all else is
// bfloat16. double: the scales are quantised too. The codes are held in memory until they are written: half a byte a
// weight.
func (s *Source) BNB(ctx context.Context, path string, double bool, maxShard int64) error {
	tensors, err := s.tensors()
	if err != nil {
		return err
	}
	wrote := &tally{show: s.Progress}
	var need int64
	for _, t := range tensors {
		n := t.Rows() * t.RowLen()
		if linearWeight.MatchString(t.Name) {
			need += nf4.Bytes(n, double) + 4096 // maps and state
			wrote.total += int64(n)
		} else {
			need += 2 * int64(n)
			wrote.total += 2 * int64(n)
		}
	}
	if err := Room(path, need); err != nil {
		return err
	}
	files, err := s.sidecars(weights.BF16)
	if err != nil {
		return err
	}
	if files["config.json"], err = withField(files["config.json"], "quantization_config", weights.QuantizationConfig(double)); err != nil {
		return err
	}
	var entries []weights.Entry
	for _, t := range tensors {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !linearWeight.MatchString(t.Name) {
			entries = append(entries, s.entry(ctx, wrote, t.Name, t, weights.BF16, 0))
			continue
		}
		q, err := quantized(t, double, s.reader(t))
		if err != nil {
			return err
		}
		parts, err := weights.NF4Entries(t.Name, t.Rows(), t.RowLen(), q)
		if err != nil {
			return err
		}
		entries = append(entries, parts...)
		wrote.add(int64(t.Rows() * t.RowLen()))
	}
	return writeFolder(path, files, entries, maxShard)
}
