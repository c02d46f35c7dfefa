// Package tfeventstest reads event files for tests. It shares nothing with the writer: the CRC is
// computed bit by bit, and messages are taken apart by the wire format alone.
package tfeventstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// Event is one event of a file.
type Event struct {
	WallTime float64
	Step     int
	Version  string             // file_version
	Scalars  map[string]float32 // by tag
	Start    bool               // the start of a session: scalars from Step on are to be forgotten
}

// Read returns the events of one file.
func Read(path string) ([]Event, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []Event
	for at := 0; at < len(data); {
		record, n, err := record(data[at:])
		if err != nil {
			return nil, fmt.Errorf("%s, offset %d: %w", path, at, err)
		}
		e, err := parse(record)
		if err != nil {
			return nil, fmt.Errorf("%s, offset %d: %w", path, at, err)
		}
		all = append(all, e)
		at += n
	}
	return all, nil
}

// Series is the scalars of a folder's files by tag and step, as TensorBoard shows them: files in
// the order of their names, and at the start of a session what it is to forget is dropped. A tag
// with two values of one step is an error.
func Series(dir string) (map[string]map[int]float32, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*tfevents*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	series := map[string]map[int]float32{}
	for _, path := range paths {
		events, err := Read(path)
		if err != nil {
			return nil, err
		}
		if len(events) == 0 || events[0].Version != "brain.Event:2" {
			return nil, fmt.Errorf("%s does not begin with the version of the format", path)
		}
		for _, e := range events {
			for _, steps := range series {
				for step := range steps {
					if e.Start && step >= e.Step {
						delete(steps, step)
					}
				}
			}
			for tag, v := range e.Scalars {
				if series[tag] == nil {
					series[tag] = map[int]float32{}
				}
				if _, twice := series[tag][e.Step]; twice {
					return nil, fmt.Errorf("%s: %s of step %d is there twice", path, tag, e.Step)
				}
				series[tag][e.Step] = v
			}
		}
	}
	return series, nil
}

var errShort = errors.New("cut short")

// record returns the content of the TFRecord that data begins with, and its length in all.
func record(data []byte) ([]byte, int, error) {
	if len(data) < 12 {
		return nil, 0, errShort
	}
	n := binary.LittleEndian.Uint64(data)
	if n > uint64(len(data)-12-4) {
		return nil, 0, errShort
	}
	end := 12 + int(n)
	if masked(data[:8]) != binary.LittleEndian.Uint32(data[8:]) || masked(data[12:end]) != binary.LittleEndian.Uint32(data[end:]) {
		return nil, 0, errors.New("wrong CRC")
	}
	return data[12:end], end + 4, nil
}

func masked(data []byte) uint32 {
	crc := ^uint32(0)
	for _, c := range data {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78*(crc&1)
		}
	}
	crc = ^crc
	return (crc>>15 | crc<<17) + 0xa282ead8
}

// fields calls f with every field of a message: number holds what a varint or a fixed field holds,
// content what a field of bytes does.
func fields(message []byte, f func(field int, number uint64, content []byte) error) error {
	for len(message) > 0 {
		key, n := binary.Uvarint(message)
		if n <= 0 {
			return errShort
		}
		message = message[n:]
		var number uint64
		var content []byte
		size := 0
		switch key & 7 {
		case 0:
			number, size = binary.Uvarint(message)
		case 1:
			if size = 8; len(message) >= size {
				number = binary.LittleEndian.Uint64(message)
			}
		case 5:
			if size = 4; len(message) >= size {
				number = uint64(binary.LittleEndian.Uint32(message))
			}
		case 2:
			length, n := binary.Uvarint(message)
			if size = n + int(length); n > 0 && size <= len(message) {
				content = message[n:size]
			}
		default:
			return fmt.Errorf("wire type %d", key&7)
		}
		if size <= 0 || size > len(message) {
			return errShort
		}
		message = message[size:]
		if err := f(int(key>>3), number, content); err != nil {
			return err
		}
	}
	return nil
}

func parse(message []byte) (Event, error) {
	e := Event{Scalars: map[string]float32{}}
	err := fields(message, func(field int, number uint64, content []byte) error {
		switch field {
		case 1:
			e.WallTime = math.Float64frombits(number)
		case 2:
			e.Step = int(number)
		case 3:
			e.Version = string(content)
		case 5:
			return fields(content, func(_ int, _ uint64, value []byte) error { return e.scalar(value) })
		case 7:
			return fields(content, func(field int, number uint64, _ []byte) error {
				e.Start = e.Start || field == 1 && number == 1
				return nil
			})
		}
		return nil
	})
	return e, err
}

func (e *Event) scalar(value []byte) error {
	var tag string
	var v float32
	err := fields(value, func(field int, number uint64, content []byte) error {
		switch field {
		case 1:
			tag = string(content)
		case 2:
			v = math.Float32frombits(uint32(number))
		}
		return nil
	})
	if _, twice := e.Scalars[tag]; twice {
		return fmt.Errorf("%s is twice in one event", tag)
	}
	e.Scalars[tag] = v
	return err
}
