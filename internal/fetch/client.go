package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Site is a hub's address and the token for it.
type Site struct {
	Endpoint string // without a slash at the end
	Token    string // "" for none
}

// Client speaks to the hubs.
type Client struct {
	HF, MS  Site
	Workers int                             // files at a time
	Wait    func(attempt int) time.Duration // before another attempt, from 1
	Stall   time.Duration                   // a connection that brings nothing for so long is given up
	Log     func(format string, args ...any)

	http *http.Client
}

// attempts is how often something is tried that makes no progress.
const attempts = 5

// FromEnvironment makes a client by what the programs of the hubs read: HF_ENDPOINT; HF_TOKEN, or the file that HF_TOKEN_PATH
// names or huggingface-cli login wrote; MODELSCOPE_DOMAIN and MODELSCOPE_API_TOKEN.
func FromEnvironment() (*Client, error) {
	c := &Client{
		HF:      Site{Endpoint: strings.TrimRight(os.Getenv("HF_ENDPOINT"), "/")},
		MS:      Site{Endpoint: "https://www.modelscope.cn", Token: os.Getenv("MODELSCOPE_API_TOKEN")},
		Workers: 4, Stall: time.Minute,
		Wait: func(attempt int) time.Duration { return time.Second << (attempt - 1) },
		Log:  func(string, ...any) {},
	}
	if c.HF.Endpoint == "" {
		c.HF.Endpoint = "https://huggingface.co"
	}
	if domain := os.Getenv("MODELSCOPE_DOMAIN"); domain != "" {
		c.MS.Endpoint = strings.TrimRight(domain, "/")
		if !strings.Contains(domain, "://") {
			c.MS.Endpoint = "https://" + c.MS.Endpoint
		}
	}
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if c.HF.Token == "" {
			c.HF.Token = strings.TrimSpace(os.Getenv(name))
		}
	}
	var err error
	if c.HF.Token == "" && !on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
		c.HF.Token, err = tokenFile()
	}
	return c, err
}

// tokenFile reads the token that huggingface-cli login keeps.
func tokenFile() (string, error) {
	path := os.Getenv("HF_TOKEN_PATH")
	if path == "" {
		home, err := hfHome()
		if err != nil {
			return "", err
		}
		path = filepath.Join(home, "token")
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := readAll(f, 4096)
	return strings.TrimSpace(string(text)), err
}

// hfHome is the folder of Hugging Face's programs.
func hfHome() (string, error) {
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return dir, nil
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "huggingface"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".cache", "huggingface"), err
}

// Offline reports whether HF_HUB_OFFLINE forbids the network.
func Offline() bool { return on("HF_HUB_OFFLINE") }

func on(name string) bool {
	switch strings.ToUpper(os.Getenv(name)) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// client makes the HTTP client, once. A token is for the host it was given for: where a redirect leads to another, as to
// the store that large files lie in, it stays behind. None leads from https to http.
func (c *Client) client() *http.Client {
	if c.http == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.ResponseHeaderTimeout = c.Stall
		transport.DisableCompression = true // lengths and offsets are those of the file
		c.http = &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
			first := via[0].URL
			switch {
			case len(via) >= 10:
				return errors.New("more than 10 redirects")
			case req.URL.Scheme != "https" && req.URL.Scheme != "http":
				return fmt.Errorf("a redirect to %s", req.URL.Scheme)
			case via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme == "http":
				return fmt.Errorf("a redirect from https to http (%s)", req.URL.Host)
			}
			if req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
				req.Header.Del("Authorization")
				req.Header.Del("Cookie")
			}
			return nil
		}}
	}
	return c.http
}

// get asks for an address from byte offset on.
func (c *Client) get(ctx context.Context, s Site, address string, offset int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, final(err)
	}
	req.Header.Set("User-Agent", "qlora")
	req.Header.Set("Accept-Encoding", "identity")
	if s.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.Token)
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	return c.client().Do(req)
}

// finalError is an error that another attempt would not mend.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func final(err error) error { return finalError{err} }

// laterError asks to wait before another attempt.
type laterError struct {
	error
	wait time.Duration
}

func (e laterError) Unwrap() error { return e.error }

// retry calls try until it succeeds, or fails finally, or has made no progress five times in a row.
func (c *Client) retry(ctx context.Context, try func() (progress bool, err error)) error {
	for n := 1; ; n++ {
		progress, err := try()
		var stop finalError
		var later laterError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &stop):
			return stop.error
		}
		if progress {
			n = 1
		}
		if n >= attempts {
			return fmt.Errorf("%w (tried %d times; the same command goes on from here)", err, attempts)
		}
		wait := c.Wait(n)
		if errors.As(err, &later) {
			wait = max(wait, later.wait)
		}
		c.Log("%v; trying again in %v", err, wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// statusError says what a status other than the one asked for means.
func statusError(resp *http.Response) error {
	host := resp.Request.URL.Host
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return final(fmt.Errorf("%s answers %s: the repository is private, or its licence must be agreed to there first; set HF_TOKEN to a token that may read it", host, resp.Status))
	case code == http.StatusNotFound:
		return final(fmt.Errorf("%s answers %s: there is no such repository, revision or file (a private one is not shown without HF_TOKEN)", host, resp.Status))
	case code == http.StatusTooManyRequests || code >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return laterError{fmt.Errorf("%s answers %s", host, resp.Status), time.Duration(min(max(seconds, 0), 600)) * time.Second}
	}
	return final(fmt.Errorf("%s answers %s", host, resp.Status))
}

// webPage reports whether an answer is a page for a person, such as a proxy's login.
func webPage(resp *http.Response) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html")
}

// readAll reads at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = final(fmt.Errorf("more than %d bytes", limit))
	}
	return text, err
}
