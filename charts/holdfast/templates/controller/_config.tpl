{{/* The configuration file of the controllers. */}}
{{- define "holdfast.controller.config" -}}
{{- $any := include "holdfast.anyAddress" . -}}
endpoint: unix:///csi/csi.sock
listen: {{ printf "%s:%v" $any .Values.network.controllerPort | quote }}
metrics: {{ printf "%s:%v" $any .Values.network.controllerMetricsPort | quote }}
heartbeat: {{ .Values.heartbeat }}
{{ include "holdfast.tls.config" . }}
{{- if eq .Values.tls.mode "auto" }}
  auto:
    authority: {{ .Release.Namespace }}/{{ include "holdfast.tls.authority" . }}
    listen: {{ printf "%s:%v" $any .Values.network.enrolPort | quote }}
    account: {{ .Release.Namespace }}/{{ include "holdfast.node.account" . }}
    certificateLife: {{ .Values.tls.auto.certificateLife }}
{{- end }}
lostHomes: {{ .Values.lostHomes | default list | toJson }}
podEvents: {{ .Values.controller.podEvents }}
log:
  format: {{ .Values.log.format }}
  level: {{ .Values.log.level }}
{{- end }}
