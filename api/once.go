package api

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/api/problem"
)

var idempotencyKey = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)

// once handles a call that names itself: the first time it is handled, and within 24 hours it is answered from memory.
//
// The answer is remembered in the transaction of the change that it tells of, so there is never one without the other. If
// handling ends in a problem, the change is undone and the problem is what is remembered, unless it may go away by
// itself.
func (a *API) once(w http.ResponseWriter, c *call, keys []string, handle handler) (ans answer, err error) {
	if len(keys) > 1 || !idempotencyKey.MatchString(keys[0]) {
		return answer{}, badParameter("Idempotency-Key", "must be given once, as 1 to 255 visible ASCII characters")
	}
	ctx := c.Context()
	name := pgx.StrictNamedArgs{
		"workspace": c.workspace(), "api_key": c.id.key.ID, "operation": c.Method + " " + c.URL.EscapedPath(), "key": keys[0],
	}
	request := sha256.Sum256(c.body)
	aead, err := answerSeal(c.Request)
	if err != nil {
		return answer{}, err
	}

	err = pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		const lock = `SELECT pg_try_advisory_xact_lock($1)`
		var mine bool
		if err := tx.QueryRow(ctx, lock, lockOf(name)).Scan(&mine); err != nil {
			return fmt.Errorf("lock idempotency key: %w", err)
		}
		if !mine {
			return errInProgress()
		}
		const lookup = `
			SELECT request_hash, answer
			FROM idempotency_keys
			WHERE workspace_id = @workspace AND api_key_id = @api_key AND operation = @operation AND key = @key
				AND created_at > now() - interval '24 hours'`
		var before, sealed []byte
		err := tx.QueryRow(ctx, lookup, name).Scan(&before, &sealed)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
		case err != nil:
			return fmt.Errorf("look up idempotency key: %w", err)
		case [32]byte(before) != request:
			return errReused()
		default:
			w.Header().Set("Idempotency-Replayed", "true")
			return unsealAnswer(aead, sealed, &ans)
		}

		err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
			c.stores = a.stores.in(tx)
			ans, err = handle(c)
			return err
		})
		if err != nil {
			if toProblem(err).Status >= http.StatusInternalServerError {
				return err
			}
			p := a.explain(c.Request, err)
			ans = answer{Status: p.Status, Problem: p}
		}
		return a.remember(c, tx, name, request, aead, ans)
	})
	if err != nil {
		return answer{}, err
	}
	return ans, nil
}

// remember keeps an answer, and forgets some that are too old.
func (a *API) remember(c *call, tx pgx.Tx, name pgx.StrictNamedArgs, request [32]byte, aead cipher.AEAD, ans answer) error {
	sealed, err := sealAnswer(aead, ans)
	if err != nil {
		return err
	}
	const insert = `
		INSERT INTO idempotency_keys AS i (workspace_id, api_key_id, operation, key, request_hash, status, answer)
		VALUES (@workspace, @api_key, @operation, @key, @request, @status, @answer)
		ON CONFLICT (workspace_id, api_key_id, operation, key) DO UPDATE
		SET request_hash = excluded.request_hash,
		    status       = excluded.status,
		    answer       = excluded.answer,
		    created_at   = now()`
	args := pgx.StrictNamedArgs{"request": request[:], "status": ans.Status, "answer": sealed}
	for k, v := range name {
		args[k] = v
	}
	if _, err := tx.Exec(c.Context(), insert, args); err != nil {
		return fmt.Errorf("remember answer: %w", err)
	}
	const expire = `
		DELETE FROM idempotency_keys
		WHERE ctid = ANY (ARRAY(
			SELECT ctid
			FROM idempotency_keys
			WHERE created_at <= now() - interval '24 hours'
			ORDER BY created_at
			LIMIT 20
			FOR UPDATE SKIP LOCKED))`
	if _, err := tx.Exec(c.Context(), expire); err != nil {
		return fmt.Errorf("forget old answers: %w", err)
	}
	return nil
}

func lockOf(name pgx.StrictNamedArgs) int64 {
	sum := sha256.Sum256(fmt.Append([]byte("idempotency\x00"), name["workspace"], "\x00", name["api_key"], "\x00", name["operation"], "\x00", name["key"]))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// answerSeal returns what answers to a key are sealed with. It follows from the secret that the request carries, of which
// the database has only the hash, so that an answer which shows a secret can be read by nobody but who got it.
func answerSeal(r *http.Request) (cipher.AEAD, error) {
	_, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	key, err := hkdf.Key(sha256.New, []byte(strings.TrimSpace(secret)), nil, "mubatch idempotency answer", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func sealAnswer(aead cipher.AEAD, ans answer) ([]byte, error) {
	b, err := json.Marshal(ans)
	if err != nil {
		return nil, fmt.Errorf("seal answer: %w", err)
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return aead.Seal(nonce, nonce, b, nil), nil
}

func unsealAnswer(aead cipher.AEAD, sealed []byte, ans *answer) error {
	if len(sealed) < aead.NonceSize() {
		return errors.New("unseal answer: too short")
	}
	b, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return fmt.Errorf("unseal answer: %w", err)
	}
	return json.Unmarshal(b, ans)
}

func errInProgress() *problem.Problem {
	p := problem.New(http.StatusConflict, "in_progress", "A request with this Idempotency-Key is under way.")
	p.RetryAfter = time.Second
	return p
}

func errReused() *problem.Problem {
	p := problem.New(http.StatusUnprocessableEntity, "idempotency_key_reused", "This Idempotency-Key belongs to another request.")
	p.Detail = "Use a new key for a new request, and send the same body again to repeat one."
	return p
}
