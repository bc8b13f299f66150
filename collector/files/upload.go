package files

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// upload is a file that somebody has uploaded.
type upload struct {
	pool *pgxpool.Pool
	id   int64 // of the import
	size int64
}

func (u *upload) Size() int64 { return u.size }

// chunk returns what was uploaded together with the byte at offset, from there on.
func (u *upload) chunk(ctx context.Context, offset int64) ([]byte, error) {
	const query = `
		SELECT substr(data, (@offset - at)::integer + 1)
		FROM import_chunks
		WHERE import_id = @id AND at <= @offset
		ORDER BY at DESC
		LIMIT 1`
	rows, _ := u.pool.Query(ctx, query, pgx.StrictNamedArgs{"id": u.id, "offset": offset}) // err: below
	data, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[[]byte])
	if errors.Is(err, pgx.ErrNoRows) || err == nil && len(data) == 0 {
		return nil, badFile("not_found", "what was uploaded is not there any more")
	}
	if err != nil {
		return nil, fmt.Errorf("read what was uploaded: %w", err)
	}
	return data, nil
}

func (u *upload) From(ctx context.Context, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(&uploadReader{ctx: ctx, upload: u, offset: offset}), nil
}

func (u *upload) ReadAt(ctx context.Context, p []byte, offset int64) (int, error) {
	return io.ReadFull(&uploadReader{ctx: ctx, upload: u, offset: offset}, p)
}

// uploadReader reads a file chunk by chunk.
type uploadReader struct {
	ctx context.Context // of the reader, as io.Reader has none
	*upload
	offset int64
	rest   []byte // of the chunk
}

func (r *uploadReader) Read(p []byte) (n int, err error) {
	if r.offset >= r.size {
		return 0, io.EOF
	}
	if len(r.rest) == 0 {
		if r.rest, err = r.chunk(r.ctx, r.offset); err != nil {
			return 0, err
		}
	}
	n = copy(p, r.rest)
	r.rest = r.rest[n:]
	r.offset += int64(n)
	return n, nil
}

// Of a place with one file:

func (u *upload) list(context.Context) ([]object, error) { return nil, nil } // it was noted when the import was made

func (u *upload) open(_ context.Context, o object) (content, io.Closer, error) {
	return &upload{u.pool, u.id, o.Size}, io.NopCloser(nil), nil
}
