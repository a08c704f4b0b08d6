package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// waitForRuntimeCommand waits until a container runtime answers the kubelet's
// protocol. A kubelet that is started before exits: the socket is there a
// moment earlier than the service behind it.
func waitForRuntimeCommand() *cobra.Command {
	var timeout time.Duration
	command := &cobra.Command{
		Use:  "wait-for-runtime SOCKET",
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(command.Context(), timeout)
			defer cancel()
			return waitForRuntime(ctx, args[0])
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return command
}

func waitForRuntime(ctx context.Context, socket string) error {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := cri.NewRuntimeServiceClient(connection)
	for {
		_, err := client.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the container runtime at %s does not answer: %w", socket, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// forgetContainersCommand drops the containers, but no image, from the
// database of a stopped containerd.
//
// A cluster is ended hard, so its containers stay on record, and the next
// kubelet would spend minutes on removing hundreds of them one by one. Once
// they are off the record, containerd's garbage collector drops their
// snapshots by itself when it starts. The layout is documented in containerd's
// metadata/buckets.go: v1/<namespace>/<kind>/<id>.
func forgetContainersCommand() *cobra.Command {
	return &cobra.Command{
		Use:  "forget-containers META.DB",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return forgetContainers(args[0])
		},
	}
}

func forgetContainers(path string) error {
	database, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		return fmt.Errorf("open %s (is its containerd still running?): %w", path, err)
	}
	defer database.Close()
	return database.Update(func(tx *bbolt.Tx) error {
		version := tx.Bucket([]byte("v1"))
		if version == nil {
			return nil // a containerd that never stored anything
		}
		return version.ForEachBucket(func(namespace []byte) error {
			return dropContainers(version.Bucket(namespace))
		})
	})
}

func dropContainers(namespace *bbolt.Bucket) error {
	for _, kind := range []string{"containers", "sandboxes"} {
		err := namespace.DeleteBucket([]byte(kind))
		if err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
			return err
		}
	}
	return nil
}
