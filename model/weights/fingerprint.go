package weights

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Fingerprint samples windows of fingerprintWindow bytes at fingerprintWindows
// places of each tensor.
const (
	fingerprintWindows = 8
	fingerprintWindow  = 256
)

// Fingerprint returns a sha256 in hexadecimal that tells one base model from
// another without reading it whole. It covers what of the configuration the
// arithmetic depends on, and of each tensor the name, stored type, shape and 2 KB:
// 8 windows of 256 bytes spread evenly from its first to its last byte. So it is the
// same for the same weights in one file or in shards, wherever they lie, under
// whatever tokenizer or generation settings; and it differs for another size,
// training stage, fine-tune, quantisation or file format. An edit that touches only
// bytes between the windows goes unseen: it is a check against mistakes, not against
// forgery. That of random weights says so, before the sha256.
func (m *Model) Fingerprint() (string, error) {
	c := m.Config
	hash := sha256.New()
	fmt.Fprintln(hash, "qlora base 1", c.ModelType, c.HiddenSize, c.IntermediateSize, c.NumHiddenLayers, c.NumAttentionHeads,
		c.NumKeyValueHeads, c.HeadDim, c.VocabSize, c.RMSNormEps, c.RopeTheta, c.TieWordEmbeddings, c.AttentionBias)
	var window [fingerprintWindow]byte
	for _, name := range m.Names() {
		t := m.tensors[name]
		fmt.Fprintf(hash, "%q %s %v\n", name, t.DType, t.Shape)
		n := min(t.size, fingerprintWindow)
		for i := range int64(fingerprintWindows) {
			offset := (t.size - n) * i / (fingerprintWindows - 1)
			if err := t.readAt(window[:n], offset); err != nil {
				return "", err
			}
			if err := binary.Write(hash, binary.LittleEndian, offset); err != nil {
				return "", err
			}
			hash.Write(window[:n])
		}
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if m.Random {
		return "random " + sum, nil
	}
	return sum, nil
}
