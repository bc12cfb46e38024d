package podnet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// routeProtocol marks our routes, so that those of nodes that are gone can be told from others'.
const routeProtocol = netlink.RouteProtocol(117)

// writeConfig writes the CNI configuration; the container runtime takes it up by itself.
func writeConfig(path, podCIDR string) error {
	content, err := json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0",
		"name":       "podnet",
		"plugins": []any{
			map[string]any{
				"type": "ptp",
				"mtu":  linkMTU(),
				"ipam": map[string]any{
					"type": "host-local",
					// Forgotten when the node restarts, as its pods are.
					"dataDir": "/run/podnet",
					"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
					"ranges":  []any{[]any{map[string]any{"subnet": podCIDR}}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	if existing, err := os.ReadFile(path); err == nil && bytes.Equal(existing, content) {
		return nil
	}
	// Written aside without the .conflist ending, so that the runtime never reads half a file.
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	klog.InfoS("Writing the CNI configuration", "file", path, "podCIDR", podCIDR)
	return os.Rename(path+".new", path)
}

// linkMTU is the packet size of the network between the nodes.
func linkMTU() int {
	if link, err := net.InterfaceByName("eth0"); err == nil {
		return link.MTU
	}
	return 1500
}

// syncRoutes makes our routes exactly those wanted: pod range to the address of its node.
func syncRoutes(wanted map[string]net.IP) error {
	mine := &netlink.Route{Protocol: routeProtocol}
	existing, err := netlink.RouteListFiltered(netlink.FAMILY_V4, mine, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, route := range existing {
		if route.Dst == nil || wanted[route.Dst.String()] != nil {
			continue
		}
		klog.InfoS("Removing the route to a node that is gone", "podCIDR", route.Dst)
		if err := netlink.RouteDel(&route); err != nil {
			return fmt.Errorf("removing the route to %s: %w", route.Dst, err)
		}
	}
	for podCIDR, gateway := range wanted {
		_, destination, err := net.ParseCIDR(podCIDR)
		if err != nil {
			return err
		}
		route := &netlink.Route{Dst: destination, Gw: gateway, Protocol: routeProtocol}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("routing %s by %s: %w", podCIDR, gateway, err)
		}
	}
	return nil
}
