#include "transport/weights/wire.h"

#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

enum corral_status wire_resolve(const char *endpoint, struct sockaddr_storage *out, socklen_t *length,
                                struct corral_error *err)
{
    char host[256];
    const char *colon = strrchr(endpoint, ':');
    size_t n = colon == NULL ? 0 : (size_t)(colon - endpoint);
    if (n == 0 || n >= sizeof host || colon[1] == '\0') {
        return corral_fail(err, CORRAL_INVALID, "weight endpoint '%.200s' is not HOST:PORT", endpoint);
    }
    memcpy(host, endpoint, n);
    host[n] = '\0';
    char *name = host;
    if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        name = host + 1;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list = NULL;
    int rc = getaddrinfo(name, colon + 1, &hints, &list);
    if (rc != 0 || list == NULL) {
        return corral_fail(err, CORRAL_NOT_FOUND, "cannot find weight endpoint '%.200s': %s", endpoint,
                           gai_strerror(rc));
    }
    memset(out, 0, sizeof *out);
    memcpy(out, list->ai_addr, list->ai_addrlen);
    *length = list->ai_addrlen;
    freeaddrinfo(list);
    return CORRAL_OK;
}

void wire_format_address(const struct sockaddr_storage *address, char *out, size_t out_bytes)
{
    char host[64] = "?", port[8] = "?";
    getnameinfo((const struct sockaddr *)address, sizeof *address, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, out_bytes, address->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

void wire_tune_socket(int fd)
{
    const int on = 1, idle_s = 10, interval_s = 5, probes = 4;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}
