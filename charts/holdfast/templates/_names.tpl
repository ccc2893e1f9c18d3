{{- define "holdfast.driver" -}}csi.holdfast.storage{{- end }}

{{- define "holdfast.name" -}}
{{- default .Chart.Name .Values.nameOverride }}
{{- end }}

{{/* Never cut: two that are cut alike would be one. _validate.tpl refuses one that is too long. */}}
{{- define "holdfast.fullname" -}}
{{- $name := include "holdfast.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name }}
{{- end }}
{{- end }}

{{- define "holdfast.controller" -}}{{ include "holdfast.fullname" . }}-controller{{- end }}
{{- define "holdfast.node" -}}{{ include "holdfast.fullname" . }}-node{{- end }}
{{- define "holdfast.snapshotController" -}}{{ include "holdfast.fullname" . }}-snapshot-controller{{- end }}

{{- define "holdfast.controller.account" -}}
{{- with .Values.controller.serviceAccount }}{{ .name | default (.create | ternary (include "holdfast.controller" $) "default") }}{{ end }}
{{- end }}
{{- define "holdfast.node.account" -}}
{{- with .Values.node.serviceAccount }}{{ .name | default (.create | ternary (include "holdfast.node" $) "default") }}{{ end }}
{{- end }}

{{/*
A name that a label takes: one longer than a limit is cut, and told from others cut alike by a hash. Takes a list of name, limit and what
is hashed: the name, or the part of it that is all that differs. Another name would be another object, so these stay as they are.
*/}}
{{- define "holdfast.short" -}}
{{- $name := index . 0 }}
{{- if gt (len $name) (index . 1) }}
{{- printf "%s-%s" ($name | trunc 48 | trimSuffix "-" | trimSuffix ".") (index . 2 | sha256sum | trunc 8) }}
{{- else }}
{{- $name }}
{{- end }}
{{- end }}

{{- define "holdfast.selector" -}}
app.kubernetes.io/name: {{ include "holdfast.name" . | toYaml }}
app.kubernetes.io/instance: {{ .Release.Name | toYaml }}
{{- end }}

{{/* All objects' labels. Where others are added, as in holdfast.labelsAnd, theirs win: no selector is of an object's labels. */}}
{{- define "holdfast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "holdfast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: holdfast
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The same with others. Takes a list of root, component or "", and the others. */}}
{{- define "holdfast.labelsAnd" -}}
{{- $labels := include "holdfast.labels" (index . 0) }}
{{- with index . 1 }}{{ $labels = printf "%s\napp.kubernetes.io/component: %s" $labels . }}{{ end }}
{{- if index . 2 }}
{{- merge (dict) (index . 2) (fromYaml $labels) | toYaml }}
{{- else }}
{{- $labels }}
{{- end }}
{{- end }}

{{/*
A pod's labels: nothing that changes with every release of the chart, which would restart all of them. Takes a list of root,
component and others, which win over `commonLabels`.
*/}}
{{- define "holdfast.podLabels" -}}
{{ include "holdfast.selector" (index . 0) }}
app.kubernetes.io/part-of: holdfast
app.kubernetes.io/component: {{ index . 1 }}
{{- with merge (dict) (index . 2 | default dict) ((index . 0).Values.commonLabels | default dict) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
What keeps replicas apart, or the affinity that is given instead. Takes a list of root, component, and the values with `affinity` and
`antiAffinity`.
*/}}
{{- define "holdfast.affinity" -}}
{{- $values := index . 2 }}
{{- $labels := merge (dict "app.kubernetes.io/component" (index . 1)) (include "holdfast.selector" (index . 0) | fromYaml) }}
{{- $apart := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels) }}
{{- if $values.affinity }}
{{- toYaml $values.affinity }}
{{- else if eq $values.antiAffinity "required" -}}
podAntiAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - {{ toYaml $apart | nindent 6 | trim }}
{{- else -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        {{- toYaml $apart | nindent 8 }}
{{- end }}
{{- end }}

{{/* A number, whole ones without an exponent: a value of 1000000 is written 1e+06 otherwise. `--set` makes a text of 1.5. */}}
{{- define "holdfast.number" -}}{{ . | toString | float64 | toJson }}{{- end }}

{{/* An absolute path, quoted where it needs it: a blank may begin a comment. */}}
{{- define "holdfast.path" -}}
{{- if regexMatch "^/[A-Za-z0-9/._-]*$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* An image's reference. Takes a list of its values and the tag it has without one. */}}
{{- define "holdfast.image" -}}
{{- $image := first . }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag | default (last .) }}{{ end }}
{{- end }}

{{/* An address of the downward API with a port: IPv6 needs brackets. Takes a list of root, variable and port. */}}
{{- define "holdfast.address" -}}
{{- if eq (index . 0).Values.network.ipFamily "IPv6" }}[$({{ index . 1 }})]{{ else }}$({{ index . 1 }}){{ end }}:{{ index . 2 }}
{{- end }}

{{/* All addresses of a pod of its own network. */}}
{{- define "holdfast.anyAddress" -}}
{{- if eq .Values.network.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end }}
{{- end }}
