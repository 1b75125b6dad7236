package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// fetchTimeout bounds all that an issuer is asked at once.
	fetchTimeout = 5 * time.Second
	// maxDocument bounds what an issuer answers.
	maxDocument = 1 << 20
	// maxIssuerURL bounds an issuer's name, which is stored with each of its users.
	maxIssuerURL = 255
)

// CheckIssuerURL says what is wrong with the URL of an OpenID Connect issuer: it is https, or http to this machine.
func CheckIssuerURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(s) > maxIssuerURL:
		return fmt.Errorf("%q is not the URL of an issuer, such as https://id.example.com", clip(s))
	case u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())):
		return fmt.Errorf("the issuer %s is not https: whoever is between could make tokens", s)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newIssuerClient returns the client that asks issuers. It keeps no connection, since it is used every few minutes at
// most, and follows no redirect: an issuer says itself where its keys are.
func newIssuerClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: fetchTimeout, ResponseHeaderTimeout: fetchTimeout, MaxResponseHeaderBytes: 64 << 10,
		},
		Timeout:       fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// fetchKeys asks an issuer where its keys are (OpenID Connect Discovery 1.0, section 4), and for them.
func fetchKeys(ctx context.Context, client *http.Client, issuer string) ([]issuerKey, error) {
	text, err := get(ctx, client, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	address, err := readDiscovery(text, issuer)
	if err != nil {
		return nil, err
	}
	if text, err = get(ctx, client, address); err != nil {
		return nil, err
	}
	keys, err := parseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", address, err)
	}
	return keys, nil
}

// readDiscovery returns where an issuer's document says that its keys are.
func readDiscovery(text []byte, issuer string) (string, error) {
	var doc object
	if err := doc.UnmarshalJSON(text); err != nil {
		return "", fmt.Errorf("read the discovery document: %w", err)
	}
	if name, _, err := doc.text("issuer"); err != nil || name != issuer {
		return "", fmt.Errorf("the discovery document is that of %q: set the issuer to exactly that, if it is meant", clip(name))
	}
	address, _, err := doc.text("jwks_uri")
	if err != nil {
		return "", err
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil {
		return "", fmt.Errorf("the keys are said to be at %q, which is not a URL", clip(address))
	}
	// A document from elsewhere does not send us to services of this machine.
	here := strings.HasPrefix(issuer, "http://")
	if u.Scheme != "https" && !(here && u.Scheme == "http" && isLoopback(u.Hostname())) {
		return "", fmt.Errorf("the keys are said to be at %s, which is not https", clip(address))
	}
	return address, nil
}

// get returns what is at an address, in bounds.
func get(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cache-Control", "no-cache") // a copy on the way may be from before the keys changed
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", address, resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err == nil && len(text) > maxDocument {
		err = errors.New("more than 1 MiB")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", address, err)
	}
	return text, nil
}
