package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// redisServer returns a private Redis on a folder of data, and its address. What it acknowledges it keeps: the collector
// refuses one that does not.
func redisServer(program, data, log, sockets string) (*server, string, error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, "", err
	}
	socket := redisSocket(sockets)
	address := "unix://" + socket
	return &server{
		name: "redis",
		command: func() *exec.Cmd {
			cmd := exec.Command(program,
				"--port", "0", "--unixsocket", socket, "--unixsocketperm", "700", "--dir", data,
				"--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction",
				"--daemonize", "no")
			cmd.Dir = "/"
			cmd.Env = environ()
			return cmd
		},
		log:        log,
		ready:      func(ctx context.Context) error { return pingRedis(ctx, socket) },
		orphan:     func(ctx context.Context) int { return redisOrphan(ctx, socket, data) },
		ask:        syscall.SIGTERM,
		force:      syscall.SIGKILL,
		atOurDeath: syscall.SIGKILL,
	}, address, nil
}

func redisSocket(sockets string) string { return filepath.Join(sockets, "redis.sock") }

// pingRedis succeeds once the server has loaded its data.
func pingRedis(ctx context.Context, socket string) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && answer != "+PONG\r\n" {
		err = errors.New(strings.TrimSpace(answer)) // it is loading
	}
	return err
}

// redisOrphan returns the Redis that already runs on this data, left by one of us that could not take it along.
func redisOrphan(ctx context.Context, socket, data string) int {
	if _, err := os.Stat(socket); err != nil || pingRedis(ctx, socket) != nil {
		return 0
	}
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, PoolSize: 1})
	defer rdb.Close()
	dir, err := rdb.ConfigGet(ctx, "dir").Result()
	if err != nil || dir["dir"] != data {
		return 0
	}
	server, err := rdb.InfoMap(ctx, "server").Result()
	if err != nil {
		return 0
	}
	return number(server["Server"]["process_id"])
}

// substitute starts a Redis inside this process, which keeps nothing, and returns its address.
func substitute() (address string, stop func(), err error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return "", nil, fmt.Errorf("start the in-process redis: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ticking sync.WaitGroup
	ticking.Go(func() { // its keys expire only when they are told how much time went by
		for sleep(ctx, time.Second) == nil {
			m.FastForward(time.Second)
		}
	})
	return "redis://" + m.Addr(), func() {
		cancel()
		ticking.Wait()
		m.Close()
	}, nil
}
