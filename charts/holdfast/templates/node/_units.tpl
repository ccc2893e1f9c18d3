{{/*
The DaemonSets, each with `name`, `config` (its ConfigMap), `group`, `pools`, `nodeSelector`, `tolerations`, and with a
Secret per node also `node` and `secretName`. There is one for all nodes, or one per group. If a node reads its key from
a Secret, there is one per node: a DaemonSet cannot name a different Secret on each node, and a node must not see the
keys of others.
*/}}
{{- define "holdfast.node.units" -}}
{{- $groups := .Values.nodeGroups | default (list (dict "name" "" "pools" .Values.pools)) }}
{{- $secrets := (fromYaml (include "holdfast.tls.nodeSecrets" .)).nodes }}
{{- $units := list }}
{{- range $group := $groups }}
{{- $name := include "holdfast.node" $ }}
{{- with $group.name }}{{ $name = printf "%s-%s" $name . }}{{ end }}
{{- $selector := merge (dict) ($group.nodeSelector | default dict) ($.Values.node.nodeSelector | default dict) }}
{{- $tolerations := concat ($.Values.node.tolerations | default list) ($group.tolerations | default list) }}
{{- $unit := dict "name" (include "holdfast.short" (list $name 63 $name)) "config" $name "group" $group.name "pools" $group.pools "nodeSelector" $selector "tolerations" $tolerations }}
{{- if $secrets }}
{{- range $secrets }}
{{- $whole := printf "%s-%s" $name .node }}
{{- /* If the name of the group may be cut off, the node alone does not make the name unique. */}}
{{- $hashed := ternary $whole .node (and (not (empty $group.name)) (gt (len $name) 47)) }}
{{- $units = append $units (merge (dict "name" (include "holdfast.short" (list $whole 57 $hashed)) "node" .node "secretName" .secretName) $unit) }}
{{- end }}
{{- else }}
{{- $units = append $units $unit }}
{{- end }}
{{- end }}
{{- toYaml (dict "units" $units) }}
{{- end }}

{{/*
The affinity of the pods of a unit: `node.affinity`, and for a unit of one node also that node. Its terms are
alternatives, so each of them gets the node. A term without a condition matches no node and stays unchanged. Takes a
list of root and unit.
*/}}
{{- define "holdfast.node.affinity" -}}
{{- $affinity := (index . 0).Values.node.affinity | default dict | deepCopy }}
{{- with (index . 1).node }}
{{- $here := dict "key" "metadata.name" "operator" "In" "values" (list .) }}
{{- $nodes := $affinity.nodeAffinity | default dict }}
{{- $required := $nodes.requiredDuringSchedulingIgnoredDuringExecution | default dict }}
{{- $terms := list }}
{{- range $required.nodeSelectorTerms | default (list (dict "matchFields" list)) }}
{{- $term := . }}
{{- if $term }}{{ $term = set $term "matchFields" (append ($term.matchFields | default list) $here) }}{{ end }}
{{- $terms = append $terms $term }}
{{- end }}
{{- $_ := set $affinity "nodeAffinity" (set $nodes "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms)) }}
{{- end }}
{{- toYaml $affinity }}
{{- end }}

{{/* The configuration file of the nodes of a unit. Takes a list of root and unit. */}}
{{- define "holdfast.node.config" -}}
{{- $root := index . 0 }}
{{- $unit := index . 1 }}
{{- with $root -}}
endpoint: unix:///csi/csi.sock
controllers:
  - {{ include "holdfast.controller" . }}.{{ .Release.Namespace }}.svc:{{ .Values.network.controllerPort }}
stateDirectory: {{ include "holdfast.path" .Values.stateDirectory }}
heartbeat: {{ .Values.heartbeat }}
{{- with .Values.network.fabric }}
fabric: {{ . | quote }}
fabricPorts: {{ $root.Values.network.fabricPorts | quote }}
{{- with $root.Values.network.fabricInterface }}
fabricAddress: {{ . | quote }}
{{- end }}
{{- end }}
{{ include "holdfast.tls.config" . }}
{{- if eq .Values.tls.mode "auto" }}
  auto:
    ca: /authority/ca.crt
    token: /token/token
    servers:
      - {{ include "holdfast.controller" . }}.{{ .Release.Namespace }}.svc:{{ .Values.network.enrolPort }}
{{- end }}
{{- if eq .Values.node.registration "self" }}
kubeletRegistration: /registration
kubeletEndpoint: {{ include "holdfast.path" (printf "%s/plugins/%s/csi.sock" .Values.kubeletDir (include "holdfast.driver" .)) }}
{{- end }}
log:
  format: {{ .Values.log.format }}
  level: {{ .Values.log.level }}
{{- end }}
pools:
{{- range $unit.pools }}
  {{- $pool := omit . "directoryType" }}
  {{- if hasKey $pool "overcommit" }}{{ $pool = set $pool "overcommit" (.overcommit | toString | float64) }}{{ end }}
  - {{ $pool | toYaml | nindent 4 | trim }}
{{- else }} []
{{- end }}
{{- end }}
