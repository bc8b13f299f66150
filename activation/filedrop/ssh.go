package filedrop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/mubatch/mubatch/activation"
)

// hostKeyAlgorithms are those we know a server by, the best first. The order is ours, so that the key that a test tells of is
// the one that is seen when files are sent.
var hostKeyAlgorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}

// pins are the keys a server may have.
type pins struct {
	fingerprints []string
	algorithms   []string // of which they are, if that is known
}

// parsePins reads keys as known_hosts has them, with the names of hosts or without, and fingerprints, one on each line.
func parsePins(text string) (p pins, err error) {
	open := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "SHA256:") && len(line) == len("SHA256:")+43 && !strings.ContainsAny(line, " \t") {
			p.fingerprints, open = append(p.fingerprints, line), true
			continue
		}
		if strings.HasPrefix(line, "@") {
			return pins{}, errors.New("must be keys of the server itself, not of an authority")
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)) // a host's name before it passes for an option
		if err != nil {
			return pins{}, errors.New("must be lines of known_hosts, or fingerprints such as SHA256:…")
		}
		p.fingerprints = append(p.fingerprints, ssh.FingerprintSHA256(key))
		switch kind := key.Type(); kind {
		case ssh.KeyAlgoRSA:
			p.algorithms = append(p.algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			if !slices.Contains(hostKeyAlgorithms, kind) {
				return pins{}, fmt.Errorf("keys of the kind %s are not supported", kind)
			}
			p.algorithms = append(p.algorithms, kind)
		}
	}
	if open { // a fingerprint does not tell of what
		p.algorithms = nil
	}
	return p, nil
}

// signer returns the private key, or nil if there is none.
func (s sftpSecrets) signer() (ssh.Signer, error) {
	if s.PrivateKey == "" {
		return nil, nil
	}
	text := []byte(strings.TrimSpace(strings.ReplaceAll(s.PrivateKey, "\r\n", "\n")) + "\n")
	var missing *ssh.PassphraseMissingError
	key, err := ssh.ParsePrivateKey(text)
	if errors.As(err, &missing) {
		if s.Passphrase == "" {
			return nil, errors.New("is protected by a passphrase: give that, too")
		}
		if key, err = ssh.ParsePrivateKeyWithPassphrase(text, []byte(s.Passphrase)); err != nil {
			return nil, errors.New("does not open with the passphrase")
		}
	}
	if err != nil {
		return nil, errors.New("is not a private key in a form of OpenSSH or PEM")
	}
	return key, nil
}

// methods are how we say who we are. Some servers ask for the password as a question.
func (s sftpSecrets) methods(key ssh.Signer) (list []ssh.AuthMethod) {
	if key != nil {
		list = append(list, ssh.PublicKeys(key))
	}
	if s.Password != "" {
		answer := func(_, _ string, questions []string, echos []bool) ([]string, error) {
			answers := make([]string, len(questions))
			for i := range questions {
				if !echos[i] {
					answers[i] = s.Password
				}
			}
			return answers, nil
		}
		list = append(list, ssh.Password(s.Password), ssh.KeyboardInteractive(answer))
	}
	return list
}

// session is a connection to a server, which ends with ctx.
type session struct {
	ctx   context.Context
	ssh   *ssh.Client
	sftp  *sftp.Client
	unset func() bool
}

// errHostKey says that a server has another key than it should have.
var errHostKey = errors.New("the host key is not the one that is pinned")

// connect opens a session. The server hears of no credential before it has shown the right key.
func (p *SFTP) connect(ctx context.Context, cfg SFTPConfig, sec sftpSecrets) (*session, activation.Outcome) {
	wanted, err := parsePins(cfg.HostKey)
	if err != nil {
		return nil, activation.Outcome{Class: activation.Config, Reason: "the pinned host key cannot be read"}
	}
	key, err := sec.signer()
	if err != nil {
		return nil, activation.Outcome{Class: activation.Config, Reason: "the private key " + err.Error()}
	}
	conn, err := p.dialer.DialContext(ctx, "tcp", cfg.address())
	if err != nil {
		reason, _ := activation.Failure(err)
		return nil, activation.Outcome{Class: activation.Retry, Reason: reason}
	}
	s := &session{ctx: ctx, unset: context.AfterFunc(ctx, func() { conn.Close() })}
	seen := ""
	config := &ssh.ClientConfig{
		User: cfg.Username, Auth: sec.methods(key), ClientVersion: "SSH-2.0-mubatch_1", HostKeyAlgorithms: hostKeyAlgorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if seen = ssh.FingerprintSHA256(key); !slices.Contains(wanted.fingerprints, seen) {
				return errHostKey
			}
			return nil
		},
	}
	if len(wanted.algorithms) > 0 {
		config.HostKeyAlgorithms = wanted.algorithms
	}
	shaken, channels, requests, err := ssh.NewClientConn(conn, cfg.address(), config)
	if err != nil {
		s.unset()
		conn.Close()
		return nil, s.refused(err, seen, len(wanted.fingerprints) > 0)
	}
	s.ssh = ssh.NewClient(shaken, channels, requests)
	if s.sftp, err = sftp.NewClient(s.ssh, sftp.UseConcurrentWrites(true)); err != nil {
		o := s.refused(err, seen, true)
		s.close()
		return nil, o
	}
	return s, activation.Outcome{Class: activation.OK}
}

// refused is what it means that there is no session.
func (s *session) refused(err error, seen string, pinned bool) activation.Outcome {
	o := activation.Outcome{Class: activation.Config}
	var algorithm *ssh.AlgorithmNegotiationError
	switch {
	case s.ctx.Err() != nil:
		o.Class = activation.Retry
		o.Reason, _ = activation.Failure(s.ctx.Err())
	case errors.Is(err, errHostKey) && pinned:
		o.Reason = "the server's host key is " + seen + ", which is not the one that is pinned: ask its owner whether it changed"
	case errors.Is(err, errHostKey):
		o.Reason = "no host key is pinned; the server has " + seen + ": compare it with what its owner says, and pin it as host_key"
	case errors.As(err, &algorithm):
		o.Reason = "the server and we have no algorithm in common, or it has no host key of the pinned kind"
	case strings.Contains(err.Error(), "unable to authenticate"): // of which the library makes no type
		o.Class, o.Reason = activation.Reauth, "the server refuses the user name, the password or the key"
	case strings.Contains(err.Error(), "subsystem request failed"):
		o.Reason = "the server lets us in, but offers no SFTP"
	default:
		o.Class = activation.Retry
		o.Reason, _ = activation.Failure(err)
	}
	return o
}

// close ends a session. The connection goes first: without it nobody waits for what the server may never say.
func (s *session) close() {
	s.unset()
	s.ssh.Close()
	if s.sftp != nil {
		s.sftp.Close()
	}
}
