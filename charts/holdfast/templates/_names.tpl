{{- define "holdfast.driver" -}}csi.holdfast.storage{{- end }}

{{- define "holdfast.name" -}}
{{- default .Chart.Name .Values.nameOverride }}
{{- end }}

{{/* Never cut: two names could become the same. _validate.tpl rejects a name that is too long. */}}
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
A name that fits in a label: a name over the limit is cut, and a hash keeps it unique. Takes a list of name, limit and
the text for the hash: the name, or the only part of it that differs. Do not change the result: another name would be
another object.
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

{{/* The labels of all objects. Labels added with holdfast.labelsAnd override these: no selector uses an object's labels. */}}
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

{{/* The same with additional labels. Takes a list of root, component or "", and the additional labels. */}}
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
The labels of a pod: none that changes with every release of the chart, because that would restart all pods. Takes a
list of root, component and additional labels, which override `commonLabels`.
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
The anti-affinity of replicas, or the affinity from the values instead. Takes a list of root, component, and the values
with `affinity` and `antiAffinity`.
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

{{/* A number, integers without an exponent: a value of 1000000 would be 1e+06. `--set` makes 1.5 a string. */}}
{{- define "holdfast.number" -}}{{ . | toString | float64 | toJson }}{{- end }}

{{/* An absolute path, quoted if necessary: a space can begin a comment. */}}
{{- define "holdfast.path" -}}
{{- if regexMatch "^/[A-Za-z0-9/._-]*$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* The reference of an image. Takes a list of its values and the default tag. */}}
{{- define "holdfast.image" -}}
{{- $image := first . }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag | default (last .) }}{{ end }}
{{- end }}

{{/* An address from the downward API with a port; IPv6 needs brackets. Takes a list of root, variable and port. */}}
{{- define "holdfast.address" -}}
{{- if eq (index . 0).Values.network.ipFamily "IPv6" }}[$({{ index . 1 }})]{{ else }}$({{ index . 1 }}){{ end }}:{{ index . 2 }}
{{- end }}

{{/* All addresses of a pod with its own network. */}}
{{- define "holdfast.anyAddress" -}}
{{- if eq .Values.network.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end }}
{{- end }}
