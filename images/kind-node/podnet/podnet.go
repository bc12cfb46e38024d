// Package podnet is the pod network of the test cluster. On each node it
//   - writes the CNI configuration with the node's own pod range,
//   - keeps a host route to every other node's pod range (all nodes share one layer-2 network),
//   - hides pods behind their node's address when they leave the pod network.
//
// It does not enforce NetworkPolicy.
package podnet

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	confFile = "/etc/cni/net.d/10-podnet.conflist"
	// resync repairs what something else on the node may have undone.
	resync = 30 * time.Second
)

// NewCommand returns the command that runs on every node, as a DaemonSet in the host's network.
func NewCommand() *cobra.Command {
	var node, podSubnet string
	command := &cobra.Command{
		Use:           "podnet",
		Short:         "Pod network of the test cluster: CNI configuration and routes between nodes",
		SilenceUsage:  true,
		SilenceErrors: false,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return run(ctx, node, podSubnet)
		},
	}
	command.Flags().StringVar(&node, "node", os.Getenv("NODE_NAME"), "name of this node")
	command.Flags().StringVar(&podSubnet, "pod-subnet", os.Getenv("POD_SUBNET"), "range of all pods")
	return command
}

func run(ctx context.Context, node, podSubnet string) error {
	if node == "" || podSubnet == "" {
		return fmt.Errorf("--node and --pod-subnet are needed")
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	// One pending change is enough: a reconciliation looks at all nodes.
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	nodes := factory.Core().V1().Nodes()
	_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	ticker := time.NewTicker(resync)
	defer ticker.Stop()
	for {
		if err := reconcile(nodes.Lister(), node, podSubnet); err != nil {
			klog.ErrorS(err, "Cannot set up the pod network, trying again", "after", resync)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-ticker.C:
		}
	}
}

// reconcile makes this node's configuration and routes match the nodes there are.
func reconcile(nodes listers.NodeLister, self, podSubnet string) error {
	all, err := nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	wanted := map[string]net.IP{}
	for _, node := range all {
		switch {
		case node.Spec.PodCIDR == "":
			klog.InfoS("Node has no pod range yet", "node", node.Name)
		case node.Name == self:
			if err := writeConfig(confFile, node.Spec.PodCIDR); err != nil {
				return err
			}
		default:
			if address := internalIP(node); address != nil {
				wanted[node.Spec.PodCIDR] = address
			}
		}
	}
	if err := syncRoutes(wanted); err != nil {
		return err
	}
	return masquerade(podSubnet)
}

func internalIP(node *corev1.Node) net.IP {
	for _, address := range node.Status.Addresses {
		if ip := net.ParseIP(address.Address).To4(); address.Type == corev1.NodeInternalIP && ip != nil {
			return ip
		}
	}
	return nil
}

// masquerade lets pods reach the world: their addresses mean nothing outside the pod network.
func masquerade(podSubnet string) error {
	rule := []string{"POSTROUTING", "-s", podSubnet, "!", "-d", podSubnet,
		"-m", "comment", "--comment", "podnet: leave the pod network", "-j", "MASQUERADE"}
	iptables := func(action string) *exec.Cmd {
		return exec.Command("iptables", append([]string{"-w", "-t", "nat", action}, rule...)...)
	}
	if iptables("-C").Run() == nil {
		return nil
	}
	if output, err := iptables("-A").CombinedOutput(); err != nil {
		return fmt.Errorf("iptables: %w: %s", err, output)
	}
	return nil
}
