{{/* The nodes that have a Secret, each `node` and `secretName`; none where a node's certificate comes another way. */}}
{{- define "holdfast.tls.nodeSecrets" -}}
nodes:
{{- if eq .Values.tls.mode "files" }}
{{- with .Values.tls.files.nodeSecrets }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- else if eq .Values.tls.mode "certManager" }}
{{- range .Values.tls.certManager.nodes }}
  - node: {{ . | quote }}
    secretName: {{ include "holdfast.ofNode" (list (printf "%s-tls" (include "holdfast.node" $)) .) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "holdfast.tls.controllerSecret" -}}
{{- if eq .Values.tls.mode "files" }}{{ .Values.tls.files.controllerSecret }}{{ else }}{{ include "holdfast.controller" . }}-tls{{ end }}
{{- end }}

{{/* The DNS name in a node's certificate, as src/tls/role.rs makes it. */}}
{{- define "holdfast.tls.nodeName" -}}
{{- if regexMatch "^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$" . -}}
{{ . }}.node.{{ include "holdfast.driver" . }}
{{- else -}}
{{ . | sha256sum | trunc 40 }}.hashed-node.{{ include "holdfast.driver" . }}
{{- end }}
{{- end }}

{{/* The part of the configuration file. */}}
{{- define "holdfast.tls.config" -}}
tls:
{{- if eq .Values.tls.mode "insecurePlainText" }}
  insecurePlainText: true
{{- else }}
  directory: /tls
{{- end }}
{{- end }}
