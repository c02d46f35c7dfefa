package tfevents

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// formatVersion is the file_version of a file's first event. From 2 on, readers purge by the start
// of a session, and not by guess.
const formatVersion = "brain.Event:2"

// sessionStart is SessionLog.START.
const sessionStart = 1

// event is an Event message: the step, and one of version, scalars and session.
type event struct {
	wallTime float64 // seconds since 1970
	step     int
	version  string
	scalars  []Scalar
	session  uint64 // SessionLog.status
}

// The wire types of protocol buffers.
const (
	varint  = 0
	fixed64 = 1
	content = 2
	fixed32 = 5
)

// append adds the message to b. Fields: wall_time 1, step 2, file_version 3, summary 5 of which
// value 1 has tag 1 and simple_value 2, session_log 7 of which status is 1.
func (e event) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(key(b, 1, fixed64), math.Float64bits(e.wallTime))
	if e.step != 0 { // a field of its default value is left out
		b = binary.AppendUvarint(key(b, 2, varint), uint64(e.step))
	}
	if e.version != "" {
		b = field(b, 3, []byte(e.version))
	}
	if len(e.scalars) > 0 {
		var summary []byte
		for _, s := range e.scalars {
			value := field(nil, 1, []byte(s.Tag))
			value = binary.LittleEndian.AppendUint32(key(value, 2, fixed32), math.Float32bits(float32(s.Value)))
			summary = field(summary, 1, value)
		}
		b = field(b, 5, summary)
	}
	if e.session != 0 {
		b = field(b, 7, binary.AppendUvarint(key(nil, 1, varint), e.session))
	}
	return b
}

// key starts a field.
func key(b []byte, number, wire uint64) []byte { return binary.AppendUvarint(b, number<<3|wire) }

// field adds a field of bytes: a string, or a message.
func field(b []byte, number uint64, data []byte) []byte {
	b = binary.AppendUvarint(key(b, number, content), uint64(len(data)))
	return append(b, data...)
}

// appendRecord adds a TFRecord: the length of data (u64), its masked CRC (u32), data, and its masked
// CRC (u32), all little-endian.
func appendRecord(b, data []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	b = binary.LittleEndian.AppendUint32(b, maskedCRC(b[start:]))
	b = append(b, data...)
	return binary.LittleEndian.AppendUint32(b, maskedCRC(data))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maskedCRC is CRC-32C, rotated and shifted so that the CRC of data which holds CRCs stays sound
// (tensorflow/core/lib/hash/crc32c.h).
func maskedCRC(data []byte) uint32 {
	c := crc32.Checksum(data, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}
