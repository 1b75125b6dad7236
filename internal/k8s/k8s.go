// Package k8s is the production engine: it runs each container as a pod of a Kubernetes cluster, in a namespace of its own.
//
// It makes a container's objects, has the API server hold them by server-side apply, and tells of a container what the
// cluster's own objects say of it. What it does not do: decide what should run (control does), keep a list of containers
// (the cluster has it), run a controller of its own (a StatefulSet restarts pods, kubelets run them), or enter a container
// otherwise than by its agent, over pod exec.
//
// Everything it does may be cut off at any instant and done again. It writes only into namespaces that carry this
// installation's label, and deletes one only when told to remove or discard that container.
package k8s
