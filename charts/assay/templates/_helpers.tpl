{{- define "assay.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* The operator's objects, its Lease included, are called so. */}}
{{- define "assay.operator" -}}
{{ include "assay.name" . }}-operator
{{- end -}}

{{/* What serves the API for HorizontalPodAutoscalers, and its certificate. */}}
{{- define "assay.metricsApi" -}}
{{ include "assay.name" . }}-metrics-api
{{- end -}}

{{/* What the pods are selected by: it never changes. */}}
{{- define "assay.selector" -}}
app.kubernetes.io/name: assay
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "assay.labels" -}}
{{ include "assay.selector" . }}
app.kubernetes.io/part-of: assay
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "assay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The namespaces that the operator watches, as JSON; [] is all of them. Its own is always one:
it watches its Lease there, by the same watches as everything else. */}}
{{- define "assay.namespaces" -}}
{{- $names := .Values.watchNamespaces -}}
{{- if $names -}}{{ append $names .Release.Namespace | uniq | sortAlpha | toJson }}{{- else -}}[]{{- end -}}
{{- end -}}

{{/* The operator's configuration file: what the values say, and who may reach the pods it makes. */}}
{{- define "assay.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if not $config.activator.image -}}
{{- $_ := set $config.activator "image" (include "assay.image" .) -}}
{{- end -}}
{{- with .Values.networkPolicy.workloads -}}
{{- if .enabled -}}
{{- $pods := include "assay.selector" $ | fromYaml -}}
{{- $operator := dict "namespace" $.Release.Namespace "podLabels" $pods -}}
{{- $_ := set $config "networkPolicy" (dict "operator" $operator "metricsFrom" .metricsFrom) -}}
{{- end -}}
{{- end -}}
{{- $url := printf "http://%s.%s.svc:8080" (include "assay.operator" .) .Release.Namespace -}}
{{- $_ := set $config "metricsUrl" $url -}}
{{- toYaml $config -}}
{{- end -}}

{{/* CEL: whether the request is of somebody whom the admission policies hold for. */}}
{{- define "assay.outsider" -}}
{{- $account := printf "system:serviceaccount:%s:%s" .Release.Namespace (include "assay.operator" .) -}}
{{- with .Values.admissionPolicy -}}
!(request.userInfo.username in {{ prepend .exemptUsers $account | toJson }} ||
has(request.userInfo.groups) &&
request.userInfo.groups.exists(group, group in {{ .exemptGroups | toJson }}))
{{- end -}}
{{- end -}}

{{/* What the operator may do where it watches: the same rules in a ClusterRole or in Roles. */}}
{{- define "assay.rules" -}}
# What users write is read, and never written.
- apiGroups: [assay.dev]
  resources: [inferenceservices, verifiedrljobs, checkpointgrants]
  verbs: [get, list, watch]
# Jobs make Checkpoints, and those that the keep-policy gives up go.
- apiGroups: [assay.dev]
  resources: [checkpoints]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [assay.dev]
  resources: [inferenceservices/status, verifiedrljobs/status, checkpoints/status]
  verbs: [get, patch]
# The children, by server-side apply.
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
# What a claim holds cannot be made again: the operator deletes none.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
# Of these no watch is kept, since most clusters do not know them.
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, create, patch, delete]
# Pods are made by others. Patched is one annotation, which makes the kubelet look at once at a
# ConfigMap that the pod mounts; deleted is an engine that cannot load weights any more.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
# Its own Lease, to see that it leads and that its watches live. The rest: the Role for the Lease.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "assay.operator" . }}]
  verbs: [list, watch]
{{- end -}}
