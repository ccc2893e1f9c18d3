{{/* The nodes with a Secret, each `node` and `secretName`; empty if a node's certificate comes from another source. */}}
{{- define "holdfast.tls.nodeSecrets" -}}
nodes:
{{- if eq .Values.tls.mode "files" }}
{{- with .Values.tls.files.nodeSecrets }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- else if eq .Values.tls.mode "certManager" }}
{{- range .Values.tls.certManager.nodes }}
  - node: {{ . | quote }}
    secretName: {{ include "holdfast.short" (list (printf "%s-tls-%s" (include "holdfast.node" $) .) 57 .) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "holdfast.tls.controllerSecret" -}}
{{- if eq .Values.tls.mode "files" }}{{ .Values.tls.files.controllerSecret }}{{ else }}{{ include "holdfast.controller" . }}-tls{{ end }}
{{- end }}

{{/* The TLS part of both configuration files; with `auto` each file adds its own. */}}
{{- define "holdfast.tls.config" -}}
tls:
{{- if eq .Values.tls.mode "insecurePlainText" }}
  insecurePlainText: true
{{- else if ne .Values.tls.mode "auto" }}
  directory: /tls
{{- end }}
{{- end }}

{{- define "holdfast.tls.authority" -}}
{{ .Values.tls.auto.authority | default (printf "%s-ca" (include "holdfast.fullname" .)) }}
{{- end }}
