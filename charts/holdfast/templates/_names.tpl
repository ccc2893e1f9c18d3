{{- define "holdfast.driver" -}}csi.holdfast.storage{{- end }}

{{- define "holdfast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Room is left for what is appended: a StatefulSet's name and its pods' are labels, at most 63 characters. */}}
{{- define "holdfast.fullname" -}}
{{- $name := include "holdfast.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
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

{{/* A name made of a node's: cut to what a label takes, and told from others cut alike by a hash. Takes a list of prefix and node. */}}
{{- define "holdfast.ofNode" -}}
{{- $name := printf "%s-%s" (first .) (last .) }}
{{- if gt (len $name) 57 }}
{{- printf "%s-%s" ($name | trunc 48 | trimSuffix "-" | trimSuffix ".") (last . | sha256sum | trunc 8) }}
{{- else }}
{{- $name }}
{{- end }}
{{- end }}

{{- define "holdfast.selector" -}}
app.kubernetes.io/name: {{ include "holdfast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "holdfast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "holdfast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: holdfast
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A pod's labels: nothing that changes with every release of the chart, which would restart all of them. */}}
{{- define "holdfast.podLabels" -}}
{{ include "holdfast.selector" . }}
app.kubernetes.io/part-of: holdfast
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
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
