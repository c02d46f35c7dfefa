package tokenizer

import "fmt"

// Vocabulary files write a token's bytes as printable characters, one a byte:
// printable Latin-1 bytes stand for themselves, the other 68 are numbered from
// U+0100 on (GPT-2's bytes_to_unicode).

// printable[b] is the character a vocabulary file writes for byte b.
var printable = func() (table [256]rune) {
	next := rune(0x100)
	for b := range table {
		r := rune(b)
		switch {
		case '!' <= r && r <= '~', '¡' <= r && r <= '¬', '®' <= r:
			table[b] = r
		default:
			table[b] = next
			next++
		}
	}
	return table
}()

// byteOf is the inverse of printable: a character to byte+1, 0 where none.
var byteOf = func() (table [0x144]uint16) {
	for b, r := range printable {
		table[r] = uint16(b) + 1
	}
	return table
}()

// fromPrintable returns the bytes that a vocabulary file's token stands for.
func fromPrintable(token string) (string, error) {
	b := make([]byte, 0, len(token))
	for _, r := range token {
		if int(r) >= len(byteOf) || byteOf[r] == 0 {
			return "", fmt.Errorf("token %q is not in byte-level form: it contains %q", token, r)
		}
		b = append(b, byte(byteOf[r]-1))
	}
	return string(b), nil
}

// toPrintable returns bytes as a vocabulary file writes them.
func toPrintable(token string) string {
	r := make([]rune, len(token))
	for i := range r {
		r[i] = printable[token[i]]
	}
	return string(r)
}
