package weights

// The block formats of GGUF, as the Python package gguf (gguf/quants.py) decodes
// them: the same float32 operations in the same order, so the same bits. Products
// are converted to float32 before a sum, which keeps the compiler from fusing them.
//
// A block of 32 (Q8_0 … Q5_1) has a scale d and, in the _1 formats, a minimum m,
// both float16. Its 4-bit parts hold element i in the low and element i+16 in the
// high half of byte i. A block of 256 (the K formats) has sub-blocks with integer
// scales of their own below d.

// dequantQ8_0 reads d, 32 int8.
func dequantQ8_0(dst []float32, src []byte) {
	for ; len(dst) >= 32; dst, src = dst[32:], src[34:] {
		d, q := half(src), src[2:34]
		for i := range q {
			dst[i] = d * float32(int8(q[i]))
		}
	}
}

// dequantQ4_0 reads d, 32 x 4 bits with an offset of 8.
func dequantQ4_0(dst []float32, src []byte) {
	for ; len(dst) >= 32; dst, src = dst[32:], src[18:] {
		d, q, lo, hi := half(src), src[2:18], dst[:16], dst[16:32]
		for i, b := range q {
			lo[i] = d * float32(int(b&15)-8)
			hi[i] = d * float32(int(b>>4)-8)
		}
	}
}

// dequantQ4_1 reads d, m, 32 x 4 bits.
func dequantQ4_1(dst []float32, src []byte) {
	for ; len(dst) >= 32; dst, src = dst[32:], src[20:] {
		d, m, q, lo, hi := half(src), half(src[2:]), src[4:20], dst[:16], dst[16:32]
		for i, b := range q {
			lo[i] = float32(d*float32(b&15)) + m
			hi[i] = float32(d*float32(b>>4)) + m
		}
	}
}

// dequantQ5_0 reads d, 32 fifth bits, 32 x 4 bits, with an offset of 16.
func dequantQ5_0(dst []float32, src []byte) {
	for ; len(dst) >= 32; dst, src = dst[32:], src[22:] {
		d, high, q, lo, hi := half(src), le32(src[2:]), src[6:22], dst[:16], dst[16:32]
		for i, b := range q {
			lo[i] = d * float32(int(uint32(b&15)|high>>i&1<<4)-16)
			hi[i] = d * float32(int(uint32(b>>4)|high>>(i+16)&1<<4)-16)
		}
	}
}

// dequantQ5_1 reads d, m, 32 fifth bits, 32 x 4 bits.
func dequantQ5_1(dst []float32, src []byte) {
	for ; len(dst) >= 32; dst, src = dst[32:], src[24:] {
		d, m, high, q, lo, hi := half(src), half(src[2:]), le32(src[4:]), src[8:24], dst[:16], dst[16:32]
		for i, b := range q {
			lo[i] = float32(d*float32(uint32(b&15)|high>>i&1<<4)) + m
			hi[i] = float32(d*float32(uint32(b>>4)|high>>(i+16)&1<<4)) + m
		}
	}
}

// scaleMin unpacks the k-th 6-bit scale and minimum of a Q4_K or Q5_K block: the
// first four of each lie whole in bytes 0-3 and 4-7, the others have their low four
// bits in bytes 8-11 and the rest in the top bits of those.
func scaleMin(s []byte, k int) (scale, minimum float32) {
	if k < 4 {
		return float32(s[k] & 63), float32(s[k+4] & 63)
	}
	return float32(s[k+4]&15 | s[k-4]>>6<<4), float32(s[k+4]>>4 | s[k]>>6<<4)
}

// dequantQ4K reads d, dmin, 12 bytes of scales and minima, 256 x 4 bits: 8
// sub-blocks of 32, two to every 32 bytes.
func dequantQ4K(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[144:] {
		d, dmin, scales := half(src), half(src[2:]), src[4:16]
		for k := 0; k < 8; k += 2 {
			s0, m0 := scaleMin(scales, k)
			s1, m1 := scaleMin(scales, k+1)
			d0, d1, m0, m1 := d*s0, d*s1, dmin*m0, dmin*m1
			q, lo, hi := src[16+16*k:][:32], dst[32*k:][:32], dst[32*k+32:][:32]
			for i, b := range q {
				lo[i] = float32(d0*float32(b&15)) - m0
				hi[i] = float32(d1*float32(b>>4)) - m1
			}
		}
	}
}

// dequantQ5K is Q4_K with 32 bytes of fifth bits before the others: bit k of byte
// i belongs to element i of sub-block k.
func dequantQ5K(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[176:] {
		d, dmin, scales, high := half(src), half(src[2:]), src[4:16], src[16:48]
		for k := 0; k < 8; k += 2 {
			s0, m0 := scaleMin(scales, k)
			s1, m1 := scaleMin(scales, k+1)
			d0, d1, m0, m1 := d*s0, d*s1, dmin*m0, dmin*m1
			q, lo, hi := src[48+16*k:][:32], dst[32*k:][:32], dst[32*k+32:][:32]
			for i, b := range q {
				h := high[i] >> k
				lo[i] = float32(d0*float32(b&15|h&1<<4)) - m0
				hi[i] = float32(d1*float32(b>>4|h>>1&1<<4)) - m1
			}
		}
	}
}

// dequantQ6K reads 128 bytes of low 4 bits, 64 of high 2 bits, 16 int8 scales and
// d, with an offset of 32. Each half of 128 elements takes 64 and 32 of those
// bytes: byte i of the high bits serves elements i, i+32, i+64 and i+96.
func dequantQ6K(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[210:] {
		d := half(src[208:])
		for h := range 2 {
			low, high, scales, out := src[64*h:][:64], src[128+32*h:][:32], src[192+8*h:][:8], dst[128*h:][:128]
			var s [8]float32
			for k := range s {
				s[k] = d * float32(int8(scales[k]))
			}
			for i, b := range high {
				k := i / 16
				out[i] = s[k] * float32(int(low[i]&15|b&3<<4)-32)
				out[i+32] = s[k+2] * float32(int(low[i+32]&15|b>>2&3<<4)-32)
				out[i+64] = s[k+4] * float32(int(low[i]>>4|b>>4&3<<4)-32)
				out[i+96] = s[k+6] * float32(int(low[i+32]>>4|b>>6<<4)-32)
			}
		}
	}
}
