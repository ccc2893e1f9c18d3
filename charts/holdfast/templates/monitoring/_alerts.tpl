{{/* The alerts of files/alerts.yaml, each with an `expr`. */}}
{{- define "holdfast.alerts" -}}
{{- $warning := include "holdfast.certificateWarning" . | int }}
{{- $for := div $warning 4 | max 60 | min 3600 }}
{{- $text := .Files.Get "files/alerts.yaml" | replace "CONTROLLER" (include "holdfast.controller" .) | replace "NAMESPACE" (toString .Release.Namespace) | replace "CERTIFICATE_WARNING" (toString $warning) | replace "CERTIFICATE_FOR" (printf "%ds" $for) }}
{{- $alerts := dict }}
{{- range $name, $alert := fromYaml $text }}
{{- with $alert.events }}
{{- $_ := set $alert "expr" (printf "sum by (%s) ((increase(%s[%s]) > 0) or (%s unless %s == last_over_time(%s[1d] offset %s)))" (join ", " .by) .counter .within .counter .counter .counter .within) }}
{{- end }}
{{- $_ := set $alerts $name $alert }}
{{- end }}
{{- toYaml $alerts }}
{{- end }}

{{/*
The seconds before the expiry of a certificate at which the alert fires: three quarters of the time between its renewal
and its expiry, at most a week. So it fires when a quarter of that time has passed, a week before the expiry at the
earliest. With `files` the chart does not know the renewal: a week.
*/}}
{{- define "holdfast.certificateWarning" -}}
{{- $week := 604800 }}
{{- with .Values.monitoring.prometheusRule.certificateWarning }}
{{- include "holdfast.seconds" . }}
{{- else }}
{{- with include "holdfast.certificateRenewal" . }}
{{- div (mul . 3) 4 | min $week }}
{{- else }}
{{- $week }}
{{- end }}
{{- end }}
{{- end }}

{{/* The seconds before the expiry at which a certificate is renewed; empty if the chart does not know. */}}
{{- define "holdfast.certificateRenewal" -}}
{{- if eq .Values.tls.mode "auto" }}
{{- div (include "holdfast.seconds" .Values.tls.auto.certificateLife) 3 }}
{{- else if eq .Values.tls.mode "certManager" }}
{{- include "holdfast.seconds" .Values.tls.certManager.renewBefore }}
{{- end }}
{{- end }}

{{/* A duration in seconds. */}}
{{- define "holdfast.seconds" -}}
{{- $start := toDate "2006-01-02" "2000-01-01" }}
{{- sub (unixEpoch (mustDateModify . $start)) (unixEpoch $start) }}
{{- end }}
