// The bindings of what ranks: ranking, shots, rerank, search. Used by mgran_fast/metrics and mgran_fast/search, which
// have checked dtype, shape and contiguity, and keep the tensors alive whose addresses come here.
#include "bindings.h"
#include "ranking.h"
#include "rerank.h"
#include "search.h"
#include "shots.h"

namespace {

using mgran::Address;
using mgran::define;
using mgran::want;

MgranRanking ranking_args(Address values, Address query_terms, Address gallery_terms, Address begins, Address ends,
                          Address members, Address nobody, Address query_cameras, Address gallery_cameras, Address ap,
                          Address inp, Address first, Address nan, std::int64_t queries, std::int64_t gallery,
                          std::int64_t count, std::int64_t nobodies, bool is_double, std::int32_t metric,
                          std::int32_t ties, bool trapezoid) {
  want(queries >= 0 && gallery >= 0 && count >= 0 && nobodies >= 0, "sizes must not be negative");
  want(metric == MGRAN_DISTANCES || (query_terms && gallery_terms), "products need terms of both sides");
  want(!query_cameras == !gallery_cameras, "cameras are given for both sides or for neither");
  MgranRanking args{};
  args.values = reinterpret_cast<const void*>(values);
  args.query_terms = reinterpret_cast<const void*>(query_terms);
  args.gallery_terms = reinterpret_cast<const void*>(gallery_terms);
  args.begins = reinterpret_cast<const std::int64_t*>(begins);
  args.ends = reinterpret_cast<const std::int64_t*>(ends);
  args.members = reinterpret_cast<const std::int64_t*>(members);
  args.nobody = reinterpret_cast<const std::int64_t*>(nobody);
  args.query_cameras = reinterpret_cast<const std::int64_t*>(query_cameras);
  args.gallery_cameras = reinterpret_cast<const std::int64_t*>(gallery_cameras);
  args.ap = reinterpret_cast<double*>(ap);
  args.inp = reinterpret_cast<double*>(inp);
  args.first = reinterpret_cast<std::int64_t*>(first);
  args.nan = reinterpret_cast<std::int64_t*>(nan);
  args.queries = queries;
  args.gallery = gallery;
  args.count = count;
  args.nobodies = nobodies;
  args.is_double = is_double;
  args.metric = metric;
  args.ties = ties;
  args.trapezoid = trapezoid;
  return args;
}

MgranShots shots_args(Address values, Address query_terms, Address gallery_terms, Address persons, Address begins,
                      Address members, Address query_cameras, Address gallery_cameras, Address found, Address first,
                      Address nan, std::int64_t queries, std::int64_t gallery, std::int64_t people, std::int64_t ranks,
                      bool is_double, std::int32_t metric) {
  want(queries >= 0 && gallery >= 0 && people >= 0 && ranks >= 1, "sizes must not be negative");
  want(metric == MGRAN_DISTANCES || (query_terms && gallery_terms), "products need terms of both sides");
  want(!query_cameras == !gallery_cameras, "cameras are given for both sides or for neither");
  MgranShots args{};
  args.values = reinterpret_cast<const void*>(values);
  args.query_terms = reinterpret_cast<const void*>(query_terms);
  args.gallery_terms = reinterpret_cast<const void*>(gallery_terms);
  args.persons = reinterpret_cast<const std::int64_t*>(persons);
  args.begins = reinterpret_cast<const std::int64_t*>(begins);
  args.members = reinterpret_cast<const std::int64_t*>(members);
  args.query_cameras = reinterpret_cast<const std::int64_t*>(query_cameras);
  args.gallery_cameras = reinterpret_cast<const std::int64_t*>(gallery_cameras);
  args.found = reinterpret_cast<double*>(found);
  args.first = reinterpret_cast<std::int64_t*>(first);
  args.nan = reinterpret_cast<std::int64_t*>(nan);
  args.queries = queries;
  args.gallery = gallery;
  args.people = people;
  args.ranks = ranks;
  args.is_double = is_double;
  args.metric = metric;
  return args;
}

MgranRerank rerank_args(Address values, Address gallery, Address neighbours, Address largest, Address starts,
                        Address members, Address weights, Address counts, Address out_members, Address out_starts,
                        Address out_weights, Address column_starts, Address column_rows, Address column_weights,
                        Address out, std::int64_t rows, std::int64_t width, std::int64_t columns, std::int64_t queries,
                        std::int32_t k, std::int32_t few, std::int32_t capacity) {
  want(rows >= 0 && width >= 0 && columns >= 0 && queries >= 0 && k >= 0 && few >= 0 && capacity >= 0,
       "sizes must not be negative");
  MgranRerank args{};
  args.values = reinterpret_cast<const float*>(values);
  args.gallery = reinterpret_cast<const float*>(gallery);
  args.neighbours = reinterpret_cast<std::int32_t*>(neighbours);
  args.largest = reinterpret_cast<float*>(largest);
  args.starts = reinterpret_cast<const std::int64_t*>(starts);
  args.members = reinterpret_cast<const std::int32_t*>(members);
  args.weights = reinterpret_cast<const float*>(weights);
  args.counts = reinterpret_cast<std::int32_t*>(counts);
  args.out_members = reinterpret_cast<std::int32_t*>(out_members);
  args.out_starts = reinterpret_cast<const std::int64_t*>(out_starts);
  args.out_weights = reinterpret_cast<float*>(out_weights);
  args.column_starts = reinterpret_cast<const std::int64_t*>(column_starts);
  args.column_rows = reinterpret_cast<const std::int32_t*>(column_rows);
  args.column_weights = reinterpret_cast<const float*>(column_weights);
  args.out = reinterpret_cast<float*>(out);
  args.rows = rows;
  args.width = width;
  args.columns = columns;
  args.queries = queries;
  args.k = k;
  args.few = few;
  args.capacity = capacity;
  return args;
}

MgranSearch search_args(Address query, Address entries, Address places, Address values, Address query_terms,
                        Address gallery_terms, Address distance, Address index, std::int64_t queries,
                        std::int64_t gallery, std::int64_t width, std::int64_t held, std::int64_t begin, std::int32_t k,
                        std::int32_t metric) {
  want(queries >= 0 && gallery >= 0 && width >= 0 && held >= 0 && begin >= 0 && k >= 0, "sizes must not be negative");
  MgranSearch args{};
  args.query = reinterpret_cast<const float*>(query);
  args.entries = reinterpret_cast<const float*>(entries);
  args.places = reinterpret_cast<const std::int64_t*>(places);
  args.values = reinterpret_cast<float*>(values);
  args.query_terms = reinterpret_cast<const float*>(query_terms);
  args.gallery_terms = reinterpret_cast<const float*>(gallery_terms);
  args.distance = reinterpret_cast<float*>(distance);
  args.index = reinterpret_cast<std::int64_t*>(index);
  args.queries = queries;
  args.gallery = gallery;
  args.width = width;
  args.held = held;
  args.begin = begin;
  args.k = k;
  args.metric = metric;
  return args;
}

constexpr const char* kRanking[] = {"values", "query_terms",   "gallery_terms",   "begins", "ends",     "members",
                                    "nobody", "query_cameras", "gallery_cameras", "ap",     "inp",      "first",
                                    "nan",    "queries",       "gallery",         "count",  "nobodies", "is_double",
                                    "metric", "ties",          "trapezoid"};
constexpr const char* kRerank[] = {"values",      "gallery",       "neighbours",  "largest",        "starts",
                                   "members",     "weights",       "counts",      "out_members",    "out_starts",
                                   "out_weights", "column_starts", "column_rows", "column_weights", "out",
                                   "rows",        "width",         "columns",     "queries",        "k",
                                   "few",         "capacity"};
constexpr const char* kShots[] = {"values",        "query_terms",     "gallery_terms", "persons",   "begins", "members",
                                  "query_cameras", "gallery_cameras", "found",         "first",     "nan",    "queries",
                                  "gallery",       "people",          "ranks",         "is_double", "metric"};
constexpr const char* kSearch[] = {"query",         "entries",  "places", "values",  "query_terms",
                                   "gallery_terms", "distance", "index",  "queries", "gallery",
                                   "width",         "held",     "begin",  "k",       "metric"};

}  // namespace

void bind_metrics(pybind11::module_& m) {
  define(m, "ranking_cpu", ranking_args, mgran_ranking_cpu, kRanking);
  define(m, "rerank_nearest_cpu", rerank_args, mgran_rerank_nearest_cpu, kRerank);
  define(m, "rerank_expand_cpu", rerank_args, mgran_rerank_expand_cpu, kRerank);
  define(m, "rerank_pairs_cpu", rerank_args, mgran_rerank_pairs_cpu, kRerank);
  define(m, "rerank_mean_cpu", rerank_args, mgran_rerank_mean_cpu, kRerank);
  define(m, "rerank_jaccard_cpu", rerank_args, mgran_rerank_jaccard_cpu, kRerank);
  define(m, "shots_cpu", shots_args, mgran_shots_cpu, kShots);
  define(m, "search_products_cpu", search_args, mgran_search_products_cpu, kSearch);
  define(m, "search_first_cpu", search_args, mgran_search_first_cpu, kSearch);
}
